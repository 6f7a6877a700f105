"""Reads the options of ``mtlc calibrate``, calls it, and prints what it found for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlc.commands.device_table import device_text
from mtlc.commands.options import DEBUG, JSON, LOG_LEVEL, PATH
from mtlc.commands.output import emit, listener

if TYPE_CHECKING:
    from mtlc.results.known_devices import CalibrationResult


def text(result: CalibrationResult) -> str:
    """What was measured, what was not, and where it is written."""
    lines = [device_text(result.device), ""]
    lines += [f"doubt: {line}" for line in result.doubts]
    return "\n".join([*lines, f"written: {result.path}"])


@click.command()
@click.option("--out", type=PATH, help="The device file. Default: local-cpu.toml in your folder of devices.")
@click.option(
    "--threads", type=click.IntRange(1, 1024), multiple=True,
    help="A number of threads to measure with; may be given again. Default: 1, and all cores.",
)  # fmt: skip
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=10, show_default=True, help="How long to measure.")
@JSON
@DEBUG
@LOG_LEVEL
def calibrate(out: Path | None, threads: tuple[int, ...], seconds: float, as_json: bool, log_level: str) -> None:
    """Measure what this machine can do and write it to the device file of local-cpu."""
    from mtlc.workflows.calibrate import calibrate as measure

    emit(as_json, measure(out, threads, seconds, log=listener(log_level)["log"]), text)
