"""Reads the options of ``mtlc trace``, calls it, and prints what it found for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlc.commands.options import DEBUG, JOB, JSON, LOG_LEVEL, PATH, SET
from mtlc.commands.output import emit, listener
from mtlc.commands.tables import count, table

if TYPE_CHECKING:
    from mtlc.results.trace import TraceResult


def text(result: TraceResult) -> str:
    """Tokens per expert by layer and task, then each task's MACs as routed beside those with every place filled."""
    lines = [f"{result.source} ({result.kind})", ""]
    rows = []
    for layer in result.layers:
        for task, found in layer.tasks.items():
            tokens = " ".join(f"{tokens:.4g}" for tokens in found.tokens_per_expert)
            routed = f"{count(found.active_macs)} of {count(layer.full_macs)}"
            rows.append((layer.layer, task, f"{100 * found.busiest:.1f} %", routed, tokens))
    lines.append(table(("layer", "task", "busiest", "MACs of the experts", "mean tokens of each expert"), rows))
    uniform = sorted({layer.experts for layer in result.layers})
    lines.append(
        "busiest: its share of the filled places; if all were alike "
        + ", ".join(f"{100 / experts:.1f} % of {experts}" for experts in uniform)
    )
    costs = [(task, count(cost.active_macs), count(cost.macs)) for task, cost in result.tasks.items()]
    if len(costs) > 1:
        costs.append(("together", count(result.active_macs), count(result.macs)))
    lines += ["", table(("task", "MACs as routed (measured)", "all places filled (modelled)"), costs)]
    if result.path is not None:
        lines += ["", f"trace: {result.path}"]
    return "\n".join(lines)


@click.command()
@JOB
@SET
@click.option(
    "--from", "checkpoint", type=PATH, help="A checkpoint of the job's network, such as a run's output folder."
)
@click.option("--trace", "recorded", type=PATH, help="Show this trace and record none.")
@click.option("--samples", type=click.IntRange(1), help="Calibration samples to record. Default: 16.")
@click.option("--task", "tasks", multiple=True, help="A task to record; may be given again. Default: all.")
@click.option("--out", type=PATH, help="Where the trace goes, an .npz file. Default: none is written.")
@JSON
@DEBUG
@LOG_LEVEL
def trace(
    job: Path,
    overrides: tuple[str, ...],
    checkpoint: Path | None,
    recorded: Path | None,
    samples: int | None,
    tasks: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    log_level: str,
) -> None:
    """Record where the tokens of JOB's calibration samples go: tokens per expert and active MACs, by layer and task."""
    from mtlc.job.job import load_job
    from mtlc.workflows.trace import trace_job

    result = trace_job(
        load_job(job, overrides), checkpoint=checkpoint, recorded=recorded, samples=samples, tasks=tasks, out=out,
        log=listener(log_level)["log"],
    )  # fmt: skip
    emit(as_json, result, text)
