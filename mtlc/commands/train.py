"""Reads the options of ``mtlc train``, calls it, and prints what it found for people."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlc.commands.options import COMPUTE_DEVICE, DEBUG, JOB, JSON, LOG_LEVEL, PATH, SET
from mtlc.commands.output import emit, listener
from mtlc.commands.tables import table

if TYPE_CHECKING:
    from mtlc.results.train import TrainResults


def text(result: TrainResults) -> str:
    """A finished training: metrics on validation, and the file."""
    found = result.validation
    rows = [
        (name, _number(found.losses[name]), _number(metric), result.units[name])
        for name, metric in found.metrics.items()
    ]
    return table(("task", "loss", "metric", "unit"), rows) + f"\n\nweights: {result.weights}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


@click.command()
@JOB
@SET
@click.option("--out", type=PATH, help="Where the weights go. Default: [model] weights of the job.")
@click.option("--from", "start", type=PATH, help="Fine-tune from these weights instead of training from scratch.")
@click.option("--half", is_flag=True, help="Write float16: half the size.")
@JSON
@DEBUG
@LOG_LEVEL
@COMPUTE_DEVICE
def train(
    job: Path,
    overrides: tuple[str, ...],
    out: Path | None,
    start: Path | None,
    half: bool,
    as_json: bool,
    log_level: str,
    device: str | None,
) -> None:
    """Train the network of JOB, from scratch or from given weights, and write its weights."""
    from mtlc.workflows.in_processes import in_processes
    from mtlc.workflows.train import train_job

    emit(
        as_json,
        in_processes(
            job, device, overrides, partial(train_job, out=out, start=start, half=half, **listener(log_level))
        ),
        text,
    )
