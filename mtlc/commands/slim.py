"""Reads the options of ``mtlc slim``, calls it, and prints what it made for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlc.commands.options import DEBUG, JOB, JSON, PATH, QUIET
from mtlc.commands.output import emit, listener
from mtlc.commands.tables import count, table

if TYPE_CHECKING:
    from mtlc.results.slim import SlimResult


def text(result: SlimResult) -> str:
    """What `slim_job` made, for people."""
    warning = result.unlearned_warning()
    groups = [*(result.stages or ()), *(result.tasks or ())]
    rows = [
        (
            point.name, count(point.macs), "-" if warning else f"{point.delta_m:+.2f} %",
            *(f"{width:g}" for width in (*point.encoder.values(), *point.decoders.values())),
        )
        for point in result.points or ()
    ]  # fmt: skip
    lines = [f"warning: {warning}", ""] if warning else []
    lines += [table(("configuration", "MACs", "Δm", *groups), rows), ""]
    bundle = result.bundle
    if bundle is not None and bundle.bytes is not None and bundle.widest_bytes:
        times = bundle.bytes / bundle.widest_bytes
        lines.append(
            f"bundle: {bundle.path}, {count(bundle.bytes, 'B')} ({times:.2f} × the widest network's), "
            f"{bundle.encoders} encoders with every width of each decoder"
        )
    return "\n".join(lines)


@click.command()
@JOB
@click.option("--out", type=PATH, help="Output folder. Default: NAME-out beside the job.")
@click.option("--from", "trained", type=PATH, help="A slimmable checkpoint: nothing is trained, the rest is done.")
@JSON
@DEBUG
@QUIET
def slim(job: Path, out: Path | None, trained: Path | None, as_json: bool, quiet: bool) -> None:
    """Train JOB's network to run at many widths, chosen after deployment; export one bundle of them all."""
    from mtlc.job.job import load_job
    from mtlc.workflows.slim import slim_job

    target = out or job.with_name(f"{job.stem}-out")
    emit(as_json, slim_job(load_job(job), target, trained=trained, **listener(quiet)), text)
