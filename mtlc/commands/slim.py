"""Reads the options of ``mtlc slim``, calls it, and prints what it made for people."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlc.commands.options import COMPUTE_DEVICE, DEBUG, JOB, JSON, LOG_LEVEL, PATH, RAY, SET
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
            "-" if warning or point.delta_m_interval is None else point.delta_m_interval.between(),
            *(f"{width:g}" for width in (*point.encoder.values(), *point.decoders.values())),
        )
        for point in result.points or ()
    ]  # fmt: skip
    lines = [f"warning: {warning}", ""] if warning else []
    lines += [table(("configuration", "MACs", "Δm", "95 %", *groups), rows), ""]
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
@SET
@click.option("--out", type=PATH, help="Output folder. Default: NAME-out beside the job.")
@click.option("--from", "trained", type=PATH, help="A slimmable checkpoint: nothing is trained, the rest is done.")
@JSON
@DEBUG
@LOG_LEVEL
@COMPUTE_DEVICE
@RAY
def slim(
    job: Path,
    overrides: tuple[str, ...],
    out: Path | None,
    trained: Path | None,
    as_json: bool,
    log_level: str,
    device: str | None,
    ray: str | None,
) -> None:
    """Train JOB's network to run at many widths, chosen after deployment; export one bundle of them all."""
    from mtlc.workflows.in_processes import in_processes
    from mtlc.workflows.slim import slim_job

    target = out or job.with_name(f"{job.stem}-out")
    if ray is not None:
        from mtlc.workflows.on_cluster import on_cluster

        result = on_cluster(
            "slim", job, target, ray=ray, overrides=overrides, device=device, log=listener(log_level)["log"],
            trained=None if trained is None else str(trained.resolve()),
        )  # fmt: skip
    else:
        verb = partial(slim_job, out=target, trained=trained, **listener(log_level))
        result = in_processes(job, device, overrides, verb)
    emit(as_json, result, text)
