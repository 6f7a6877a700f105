"""Reads the options of ``mtlc train``, calls it, and prints what it found for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlc.commands.options import DEBUG, JOB, JSON, PATH, QUIET
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
@click.option("--out", type=PATH, help="Where the weights go. Default: [model] weights of the job.")
@click.option("--from", "start", type=PATH, help="Fine-tune from these weights instead of training from scratch.")
@click.option("--half", is_flag=True, help="Write float16: half the size.")
@JSON
@DEBUG
@QUIET
def train(job: Path, out: Path | None, start: Path | None, half: bool, as_json: bool, quiet: bool) -> None:
    """Train the network of JOB, from scratch or from given weights, and write its weights."""
    from mtlc.job.job import load_job
    from mtlc.workflows.train import train_job

    emit(as_json, train_job(load_job(job), out, start=start, half=half, **listener(quiet)), text)
