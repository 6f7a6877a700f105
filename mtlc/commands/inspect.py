"""``mtlc inspect``: its options, its one call, and what it prints for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mtlc.commands.options import DEBUG, JSON, PATH
from mtlc.commands.output import emit
from mtlc.commands.tables import NETWORK, config_text, count, table


def text(result: Mapping[str, Any]) -> str:
    """A checkpoint, a bundle or a job: one line each for what it is, its tasks and its history."""
    lines = [f"{result['is']} {result['path']}"]
    if "factory" in result:
        lines.append(f"factory   {result['factory']}")
    if result.get("cost"):
        lines.append(f"cost      {count(result['cost']['macs'], 'MACs')}, {count(result['cost']['params'])} parameters")
    if "bytes" in result:
        lines.append(f"size      {count(result['bytes'], 'B')}")
    for name, task in result["tasks"].items():
        shown = {key: task[key] for key in ("metric", "kind", "unit", "loss", "shape") if task.get(key)}
        lines.append(f"task      {name}: {config_text(shown)}")
    if result.get("widths"):
        lines += _widths(result)
    for program in [] if result.get("widths") else result.get("programs", []):
        lines.append(f"program   {program['name']}: {program['file']}, for {', '.join(program['tasks'])}")
    for index, entry in enumerate(result.get("passes") or result.get("history") or [], 1):
        lines.append(f"pass {index}    {entry['name']}: {config_text(entry['config'])}")
    if result.get("layers"):
        rows = [
            (
                layer["name"] or NETWORK,
                layer["kind"],
                "x".join(map(str, layer["shape"])),
                count(layer["macs"]),
                count(layer["parameters"]),
            )
            for layer in result["layers"]
            if layer["macs"] or layer["parameters"]
        ]
        lines += ["", table(("layer", "kind", "output", "MACs", "parameters"), rows)]
    return "\n".join(lines)


def _widths(bundle: Mapping[str, Any]) -> list[str]:
    """What a bundle of several widths can run, a line for each named configuration."""
    widths = bundle["widths"]
    encoders = {encoder["name"]: encoder["widths"] for encoder in widths["encoders"]}
    macs = {program["name"]: program["macs"] for program in bundle["programs"]}
    lines = [f"widths    {len(encoders)} encoders with every width of each decoder, {len(macs)} programs"]
    for one in bundle["configurations"]:
        stages = " ".join(f"{width:g}" for width in encoders[one["encoder"]])
        decoders = " ".join(f"{task} {width:g}" for task, width in one["decoders"].items())
        cost = count(sum(macs[name] for name in one["programs"]), "MACs")
        lines.append(f"runs as   {one['name']}: {cost}, encoder {stages}, {decoders}")
    return lines


@click.command()
@click.argument("target", type=PATH)
@click.option("--job", type=PATH, help="The job that a checkpoint was made by, if its factory is not from mtlc.zoo.")
@JSON
@DEBUG
def inspect(target: Path, job: Path | None, as_json: bool) -> None:
    """Show the tasks, costs and history of TARGET: a checkpoint, a bundle, a job or any ONNX file."""
    from mtlc.workflows.inspect import inspect as look

    emit(as_json, look(target, job), text)
