"""``mtlc run``: its options, its one call, and what it prints for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mtlc.commands.options import DEBUG, JOB, JSON, PATH, QUIET
from mtlc.commands.output import emit, listener
from mtlc.commands.tables import change, count, table
from mtlc.errors import BudgetMissed


def text(result: Mapping[str, Any]) -> str:
    """A finished run: what each task paid, what the network costs, and what was missed."""
    rows = []
    for name, task in result["tasks"].items():
        verdict = {None: "", True: "kept", False: "MISSED"}[task["within"]]
        numbers = (f"{task['before']:.4g}", f"{task['after']:.4g}", change(task["before"], task["after"]))
        rows.append((name, task["metric"], *numbers, task["unit"], task["limit"] or "-", verdict))
    lines = [table(("task", "metric", "before", "after", "change", "unit", "limit", ""), rows), ""]
    delta = result["delta_m"]
    for key, what in (("vs_original", "the original network"), ("vs_single_task", "single-task networks")):
        if delta[key] is not None:
            lines.append(f"delta m {delta[key]:+.2f} % against {what}")
    before, after = result["cost"]["before"], result["cost"]["after"]
    names = {"macs": "MACs", "parameters": "parameters", "peak_activation_bytes": "peak activation bytes"}
    names["bundle_bytes"] = "bundle bytes"
    if before.get("active_macs") is not None:
        names["active_macs"] = "MACs, routed (measured)"
    costs = [(label, count(before[k]), count(after[k]), change(before[k], after[k])) for k, label in names.items()]
    latency = result["latency"]
    if latency is not None:
        old, new = (latency[side]["median_ms"] for side in ("before", "after"))
        costs.append((f"ms, {latency['threads']} thread", f"{old:.3f}", f"{new:.3f}", change(old, new)))
    lines += ["", table(("cost", "before", "after", "change"), costs)]
    if result.get("dropped_tasks"):
        lines.append("before: the original network, running the tasks that are left")
    lines += _experts(result.get("experts"))
    lines += [f"missed: {line}" for line in result["missed"]]
    lines += ["", f"bundle: {result['bundles']['after']['path']}"]
    made = result.get("quantization")
    if made is not None:
        lines += [f"in INT8: {made['path']}, {made['macs_int8']:.1%} of the MACs for {made['target']}"]
    return "\n".join(lines)


def _experts(found: Mapping[str, Any] | None) -> list[str]:
    """What an extraction took out: experts kept by layer, the score mass that each task keeps, and what is exact."""
    if found is None:
        return []
    tasks = found["tasks"]
    rows = []
    for layer in found["layers"]:
        shares = (f"{100 * layer['tasks'][task]['coverage']:.1f}" for task in tasks)
        rows.append((layer["layer"], f"{len(layer['kept'])} of {layer['experts']}", *shares))
    lines = ["", table(("experts of", "kept", *(f"% of the scores of {task}" for task in tasks)), rows)]
    lines += [f"exact: {line}" for line in found["exact"]]
    lines += [f"approximate: {line}" for line in found["approximate"]]
    if found["dropped_tasks"]:
        lines.append(f"gone: {', '.join(found['dropped_tasks'])}")
    return [*lines, ""]


@click.command()
@JOB
@click.option("--out", type=PATH, help="Output folder. Default: NAME-out beside the job.")
@JSON
@DEBUG
@QUIET
def run(job: Path, out: Path | None, as_json: bool, quiet: bool) -> None:
    """Run JOB: compress, export, verify, measure, report. A run that was cut off goes on where it stopped."""
    from mtlc.job.job import load_job
    from mtlc.workflows.run import run_job

    results = run_job(load_job(job), out or job.with_name(f"{job.stem}-out"), **listener(quiet))
    emit(as_json, results, text)
    if results["missed"]:
        raise BudgetMissed("; ".join(results["missed"]))
