"""Reads the options of ``mtlc inspect``, calls it, and prints what it found for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtlc.commands.options import DEBUG, JSON, PATH, SET
from mtlc.commands.output import emit
from mtlc.commands.overridden_job import target_with_overrides
from mtlc.commands.tables import NETWORK, config_text, count, table

if TYPE_CHECKING:
    from mtlc.results.inspect import CountedLayer, InspectedBundle, InspectedCheckpoint, InspectedJob, InspectedOnnx


def text(result: InspectedCheckpoint | InspectedBundle | InspectedJob | InspectedOnnx) -> str:
    """A checkpoint, a bundle, a job or an ONNX file: one line each for what it is, its tasks and its history."""
    from mtlc.results.inspect import InspectedBundle, InspectedCheckpoint, InspectedJob, InspectedOnnx

    lines = [f"{result.is_} {result.path}"]
    if isinstance(result, InspectedCheckpoint | InspectedJob):
        lines.append(f"factory   {result.factory}")
    if isinstance(result, InspectedCheckpoint | InspectedOnnx) and result.cost is not None:
        lines.append(f"cost      {count(result.cost.macs, 'MACs')}, {count(result.cost.params)} parameters")
    if isinstance(result, InspectedBundle | InspectedOnnx):
        lines.append(f"size      {count(result.bytes, 'B')}")
    if isinstance(result, InspectedBundle):
        return "\n".join([*lines, *_tasks(result.tasks), *(_widths(result) if result.widths else _programs(result))])
    lines += _tasks({name: task.to_dict() for name, task in result.tasks.items()})
    if isinstance(result, InspectedOnnx):
        lines += [f"assumed   {one.line()}" for one in result.cost.assumed]
        return "\n".join([*lines, *_layers(result.layers)])
    passes = result.history if isinstance(result, InspectedCheckpoint) else result.passes
    lines += [f"pass {index}    {one.name}: {config_text(one.config)}" for index, one in enumerate(passes, 1)]
    return "\n".join(lines)


def _tasks(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    keys = ("metric", "kind", "unit", "loss", "shape")
    return [
        f"task      {name}: {config_text({key: task[key] for key in keys if task.get(key)})}"
        for name, task in tasks.items()
    ]


def _programs(bundle: InspectedBundle) -> list[str]:
    return [f"program   {one['name']}: {one['file']}, for {', '.join(one['tasks'])}" for one in bundle.programs]


def _layers(layers: Sequence[CountedLayer]) -> list[str]:
    """A table of the layers that cost anything; nothing for a file without layers."""
    rows = [
        (one.name or NETWORK, one.kind, "x".join(map(str, one.shape)), count(one.macs), count(one.parameters))
        for one in layers
        if one.macs or one.parameters
    ]
    return ["", table(("layer", "kind", "output", "MACs", "parameters"), rows)] if layers else []


def _widths(bundle: InspectedBundle) -> list[str]:
    """What a bundle of several widths can run, a line for each named configuration."""
    widths = bundle.widths or {"encoders": []}
    encoders = {encoder["name"]: encoder["widths"] for encoder in widths["encoders"]}
    macs = {program["name"]: program["macs"] for program in bundle.programs}
    lines = [f"widths    {len(encoders)} encoders with every width of each decoder, {len(macs)} programs"]
    for one in bundle.configurations:
        stages = " ".join(f"{width:g}" for width in encoders[one["encoder"]])
        decoders = " ".join(f"{task} {width:g}" for task, width in one["decoders"].items())
        cost = count(sum(macs[name] for name in one["programs"]), "MACs")
        lines.append(f"runs as   {one['name']}: {cost}, encoder {stages}, {decoders}")
    return lines


@click.command()
@click.argument("target", type=PATH)
@click.option("--job", type=PATH, help="The job that a checkpoint was made by, if its factory is not from mtlc.zoo.")
@SET
@JSON
@DEBUG
def inspect(target: Path, job: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show the tasks, costs and history of TARGET: a checkpoint, a bundle, a job or any ONNX file."""
    from mtlc.workflows.inspect import inspect as look

    emit(as_json, look(*target_with_overrides(target, job, overrides)), text)
