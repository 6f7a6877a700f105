"""Reads the options of ``mtlc search``, calls it, and prints what it found for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlc.commands.options import DEBUG, JSON, LOG_LEVEL, PATH, SET
from mtlc.commands.output import emit, listener
from mtlc.commands.overridden_job import with_overrides
from mtlc.commands.tables import count, table

if TYPE_CHECKING:
    from mtlc.results.search import WidthSearchResult
    from mtlc.results.tasks import IntervalResult


def text(result: WidthSearchResult) -> str:
    """What was found, for people."""
    lines = [
        table(("stage", "width"), ((stage, f"{width:g}") for stage, width in result.encoder.items())),
        "",
        _tasks(result),
        "",
        f"cost: {count(result.macs)} MACs" + (f", {result.share:.1%} of the widest" if result.share else ""),
    ]
    if result.latency_ms is not None:
        lines.append(f"latency: {result.latency_ms:.3g} ms of CPU time (one thread), measured")
    if result.gain is not None and result.seconds is not None:
        lines.append(
            f"gain: {100 * result.gain:+.2f} % by preference{_interval(result.gain_interval)}, after {result.runs} "
            f"measurements in {result.seconds:.0f} s"
        )
    if result.bundle:
        lines.append(f"bundle: {result.bundle}")
    return "\n".join(lines)


def _tasks(result: WidthSearchResult) -> str:
    """A line for each task; of a checkpoint with the change against the widest configuration."""
    head, changes = ["task", "decoder", "metric"], result.changes or {}
    if changes:
        head += ["change from widest", "95 %", "unit"]
    rows = []
    for task, width in result.decoders.items():
        row = [task, f"{width:g}", f"{result.metrics[task]:.4g}"]
        if changes:
            found = changes[task]
            interval = "-" if found.change_interval is None else found.change_interval.between()
            row += [f"{found.change:+.3g}", interval, found.unit]
        rows.append(row)
    unknown = [f"{task}: no interval: {one.no_interval}" for task, one in changes.items() if one.no_interval]
    return "\n".join([table(head, rows), *unknown])


def _interval(found: IntervalResult | None) -> str:
    if found is None:
        return ""
    return f" ({100 * found.confidence:g} % interval {100 * found.low:+.2f} to {100 * found.high:+.2f} %)"


@click.command()
@click.argument("target", type=PATH)
@click.option("--budget", required=True, help="Such as 40% of the widest's MACs, 25MMACs or 12ms.")
@click.option("--prefer", metavar="TASK=N,…", help="What tasks are worth, as depth=0.7,semseg=0.3. Default: all alike.")
@click.option("--job", type=PATH, help="The job whose data a checkpoint is measured on.")
@SET
@click.option("--strategy", default="joint", show_default=True, help="joint, ecmt, greedy, evolution or uniform.")
@click.option("--samples", type=click.IntRange(1), help="Calibration samples per measurement. Default: all.")
@click.option("--workers", type=click.IntRange(1, 1024), default=1, show_default=True, help="Processes that measure.")
@click.option("--ray", metavar="ADDRESS", help="Measure on a Ray cluster; 'local' for one on this machine.")
@click.option("--device", help="The device of a budget in ms, or its file. Default: local-cpu.")
@click.option("--out", type=PATH, help="Cut the configuration out and export it here.")
@JSON
@DEBUG
@LOG_LEVEL
def search(
    target: Path,
    budget: str,
    prefer: str | None,
    job: Path | None,
    overrides: tuple[str, ...],
    strategy: str,
    samples: int | None,
    workers: int,
    ray: str | None,
    device: str | None,
    out: Path | None,
    as_json: bool,
    log_level: str,
) -> None:
    """Find the widths for a budget and a preference: in TARGET, a slimmable checkpoint (with --job) or a bundle."""
    from mtlc.workflows.search import search_widths

    data = with_overrides(job, overrides)
    result = search_widths(
        target, budget, prefer, job=data, strategy=strategy, samples=samples, workers=workers, ray=ray, device=device,
        out=out, log=listener(log_level)["log"],
    )  # fmt: skip
    emit(as_json, result, text)
