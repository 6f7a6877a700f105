"""Reads the options of ``mtlc run``, calls it, and prints what it found for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlc.commands.options import DEBUG, JOB, JSON, PATH, QUIET
from mtlc.commands.output import emit, listener
from mtlc.commands.tables import change, count, table
from mtlc.errors import BudgetMissed

if TYPE_CHECKING:
    from mtlc.results.routing import ExpertsResult
    from mtlc.results.run import RunResults
    from mtlc.results.tasks import TaskResult


def text(found: RunResults) -> str:
    """A finished run: what each task paid, what the network costs, and what was missed."""
    rows = [_task(name, task) for name, task in found.tasks.items()]
    lines = [table(("task", "metric", "before", "after", "change", "unit", "limit", ""), rows), ""]
    deltas = ((found.delta_m.vs_original, "the original network"),
              (found.delta_m.vs_single_task, "single-task networks"))  # fmt: skip
    lines += [f"delta m {delta:+.2f} % against {what}" for delta, what in deltas if delta is not None]
    lines += ["", table(("cost", "before", "after", "change"), _costs(found))]
    if found.dropped_tasks:
        lines.append("before: the original network, running the tasks that are left")
    lines += _experts(found.experts)
    lines += [
        f"{one.name}, compared with the network whose removed parts are masked: {one.compared.line()}"
        for one in found.passes
        if one.compared is not None
    ]
    lines += [f"missed: {line}" for line in found.missed]
    lines += ["", f"bundle: {found.bundles.after.path if found.bundles.after else '-'}"]
    made = found.quantization
    if made is not None:
        lines += [f"in INT8: {made.path}, {made.macs_int8:.1%} of the MACs for {made.target}"]
    return "\n".join(lines)


def _task(name: str, task: TaskResult) -> tuple[str, ...]:
    verdict = {None: "", True: "kept", False: "MISSED"}[task.within]
    numbers = (f"{task.before:.4g}", f"{task.after:.4g}", change(task.before, task.after))
    return (name, task.metric, *numbers, task.unit, task.limit or "-", verdict)


def _costs(found: RunResults) -> list[tuple[str, ...]]:
    names = {
        "macs": "MACs",
        "parameters": "parameters",
        "peak_activation_bytes": "peak activation bytes",
        "bundle_bytes": "bundle bytes",
    }
    if found.cost.before.active_macs is not None:
        names["active_macs"] = "MACs, routed (measured)"
    rows: list[tuple[str, ...]] = []
    for key, label in names.items():
        before, after = getattr(found.cost.before, key), getattr(found.cost.after, key)
        rows.append((label, count(before), count(after), change(before, after)))
    latency = found.latency
    if latency is not None and latency.before is not None and latency.after is not None:
        old, new = latency.before.median_ms, latency.after.median_ms
        rows.append((f"ms, {latency.threads} thread", f"{old:.3f}", f"{new:.3f}", change(old, new)))
    return rows


def _experts(found: ExpertsResult | None) -> list[str]:
    """What an extraction took out: experts kept by layer, the score mass that each task keeps, and what is exact."""
    if found is None:
        return []
    rows = []
    for layer in found.layers:
        shares = (f"{100 * layer.tasks[task].coverage:.1f}" for task in found.tasks)
        rows.append((layer.layer, f"{len(layer.kept)} of {layer.experts}", *shares))
    lines = ["", table(("experts of", "kept", *(f"% of the scores of {task}" for task in found.tasks)), rows)]
    lines += [f"exact: {line}" for line in found.exact]
    lines += [f"approximate: {line}" for line in found.approximate]
    if found.dropped_tasks:
        lines.append(f"gone: {', '.join(found.dropped_tasks)}")
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
    if results.missed:
        raise BudgetMissed("; ".join(results.missed))
