"""``mtlc plan``: its options, its one call, and what it prints for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from mtlc.commands.options import DEBUG, JOB, JSON, QUIET
from mtlc.commands.output import emit, listener
from mtlc.commands.tables import NETWORK, config_text, count, table


def text(result: Mapping[str, Any]) -> str:
    """The plan: data, cost, layers, what can be pruned, budget, passes."""
    data, cost = result["data"], result["cost"]
    lines = [
        f"data      {data['train']} train, {data['calibration']} calibration, {data['validation']} validation samples",
        f"network   {count(cost['macs'], 'MACs')}, {count(cost['params'])} parameters ({cost['kind']})",
    ]
    weights = result["weights"]
    if weights is not None and not weights["exists"]:
        lines.append(f"weights   {weights['path']} is not there yet: mtlc train {result['job']}")
    for task in result["tasks"]:
        limit = task["max_drop"]
        share = "no limit" if limit is None else f"may lose {_limit(limit, task['unit'])}"
        lines.append(f"task      {task['name']}: {task['loss']}, {task['metric']}, {share}")
    budget = result.get("budget")
    if budget is not None:
        lines.append(f"budget    {_budget(budget)}")
    for index, entry in enumerate(result["passes"], 1):
        lines.append(f"pass {index}    {entry['name']}: {config_text(entry['config'])}")
    lines.append(f"export    {config_text(result['export'])}")
    lines.append("")
    lines.append(table(("layer", "operator", "MACs", "parameters"), _layer_rows(result["layers"])))
    units = result.get("units")
    if units is not None:
        rows = [(unit["name"], unit["channels"], unit["narrowest"], "") for unit in units["prunable"]]
        rows += [(unit["name"], unit["channels"], "", unit["why"]) for unit in units["left_alone"]]
        lines += ["", table(("channel group", "channels", "narrowest", "left alone because"), rows)]
    experts = result.get("experts")
    if experts is not None:
        rows = [(layer["layer"], layer["experts"], layer["top_k"], layer["keeps"]) for layer in experts["layers"]]
        lines += ["", f"tasks that stay: {', '.join(experts['tasks'])}"]
        lines += [table(("experts of", "experts", "top k", "keeps at least"), rows)]
    return "\n".join(lines)


def _layer_rows(layers: Iterable[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    rows = []
    for layer in layers:
        name = layer.get("layer") or layer.get("name") or NETWORK
        rows.append((name, layer.get("kind") or layer.get("op", ""), layer["macs"], layer.get("parameters", "")))
    return rows


def _limit(limit: Mapping[str, Any], unit: str) -> str:
    return f"{limit['value'] * 100:g}%" if limit["relative"] else f"{limit['value']:g} {unit}".rstrip()


def _budget(budget: Mapping[str, Any]) -> str:
    if budget["kind"] == "latency":
        return f"{budget['target']:.3g} ms on {budget['device']}"
    unit = "MACs" if budget["kind"] == "macs" else "parameters"
    text = f"{count(budget['target'])} of {count(budget['original'])} {unit}"
    if budget["met_already"]:
        return f"{text}: met already"
    if budget["reachable"] is None:
        return f"{text}: what is in reach shows as the passes run"
    verdict = "within reach if the tasks' limits allow" if budget["reachable"] else "OUT OF REACH"
    return f"{text}: {verdict} (the pass alone can go to {count(budget['least'])})"


@click.command()
@JOB
@JSON
@DEBUG
@QUIET
def plan(job: Path, as_json: bool, quiet: bool) -> None:
    """Say what JOB would do, what the network costs and whether the budget can be reached. Nothing is trained."""
    from mtlc.job.job import load_job
    from mtlc.workflows.plan import plan_job

    emit(as_json, plan_job(load_job(job), log=listener(quiet)["log"]), text)
