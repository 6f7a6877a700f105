"""Reads the options of ``mtlc run``, calls it, and prints what it found for people."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlc.commands.options import COMPUTE_DEVICE, DEBUG, JOB, JSON, LOG_LEVEL, PATH, RAY, SET, WAIT_QUIET
from mtlc.commands.output import emit, listener
from mtlc.commands.tables import IN_DOUBT, change, count, cpu_ratio_text, doubts_text, ratio_text, table
from mtlc.errors import BudgetMissed

if TYPE_CHECKING:
    from mtlc.results.latency import LatencyResult
    from mtlc.results.routing import ExpertsResult
    from mtlc.results.run import RunResults
    from mtlc.results.tasks import TaskResult


def text(found: RunResults) -> str:
    """A finished run: what it does not tell, what each task paid, what the network costs, and what was missed."""
    from mtlc.results.tasks import chance_warnings, unlearned_warnings

    rows = [_task(name, task) for name, task in found.tasks.items()]
    warnings = [*unlearned_warnings(found.tasks), *chance_warnings(found.tasks)]
    lines = [*(f"warning: {line}" for line in warnings), *([""] if warnings else [])]
    head = ("task", "metric", "before", "after", "change", "after - before, 95 %", "unit", "limit", "")
    lines += [table(head, rows), ""]
    learned = all(task.learned() for task in found.tasks.values())
    delta = found.delta_m
    deltas = ((delta.vs_original if learned else None, delta.vs_original_interval, "the original network"),
              (delta.vs_single_task, delta.vs_single_task_interval, "single-task networks"))  # fmt: skip
    lines += [
        f"delta m {value:+.2f} % against {what}" + ("" if interval is None else f", {interval.words()} %")
        for value, interval, what in deltas
        if value is not None
    ]
    if not learned:
        lines.append("delta m - against the original network, which has not learned its tasks: see the warning")
    lines += ["", table(("cost", "before", "after", "change"), [*_costs(found), *_times(found.latency)])]
    if found.latency is not None and (doubts := found.latency.why_in_doubt()):
        lines.append(doubts_text(doubts))
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
    numbers = (f"{task.before:.4g}", f"{task.after:.4g}", change(task.before, task.after) if task.learned() else "-")
    known = task.change_interval
    interval = "-" if known is None else known.between()
    return (name, task.metric, *numbers, interval, task.unit, task.limit or "-", verdict)


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
    return rows


def _times(latency: LatencyResult | None) -> list[tuple[str, ...]]:
    """By the clock and by processor time, each with the ratio of the rounds: the report's figure, not another one."""
    from mtlc.results.latency import cpu_in_doubt

    if latency is None or latency.before is None or latency.after is None or latency.ratio is None:
        return []
    old, new, ratio = latency.before, latency.after, latency.ratio
    mark = IN_DOUBT if latency.why_in_doubt() else ""
    threads = f"{latency.threads} thread{'' if latency.threads == 1 else 's'}"
    wall = (f"{mark}{side.median_ms:.3f}" for side in (old, new))
    rows: list[tuple[str, ...]] = [(f"ms, {threads}", *wall, f"{ratio_text(ratio, bool(mark))} as fast")]
    if old.cpu_median_ms is not None and new.cpu_median_ms is not None:
        mark = IN_DOUBT if cpu_in_doubt(ratio, old, new) else ""
        spent = (f"{mark}{side.cpu_median_ms:.3f}" for side in (old, new))
        rows.append(("ms of CPU time", *spent, f"{mark}{cpu_ratio_text(ratio)} as fast"))
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
@SET
@click.option("--out", type=PATH, help="Output folder. Default: NAME-out beside the job.")
@JSON
@DEBUG
@LOG_LEVEL
@WAIT_QUIET
@COMPUTE_DEVICE
@RAY
def run(
    job: Path,
    overrides: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    log_level: str,
    wait_quiet: bool,
    device: str | None,
    ray: str | None,
) -> None:
    """Run JOB: compress, export, verify, measure, report. A run that was cut off goes on where it stopped."""
    from mtlc.workflows.in_processes import in_processes
    from mtlc.workflows.run import run_job

    target = out or job.with_name(f"{job.stem}-out")
    if ray is not None:
        from mtlc.workflows.on_cluster import on_cluster

        results = on_cluster(
            "run", job, target, ray=ray, overrides=overrides, device=device, log=listener(log_level)["log"],
            wait_quiet=wait_quiet,
        )  # fmt: skip
    else:
        results = in_processes(
            job, device, overrides, partial(run_job, out=target, wait_quiet=wait_quiet, **listener(log_level))
        )
    emit(as_json, results, text)
    if results.missed:
        raise BudgetMissed("; ".join(results.missed))
