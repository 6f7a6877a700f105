"""Reads the options of ``mtlc doctor``, calls it, and prints what it found for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mtlc.commands.options import DEBUG, JSON
from mtlc.commands.output import emit, log_line
from mtlc.commands.tables import table

if TYPE_CHECKING:
    from mtlc.results.doctor import DoctorResult, TensorRtHere


def text(result: DoctorResult) -> str:
    """The state of this machine."""
    cpu = result.cpu
    flags = ", ".join(
        f"{flag} {'unknown' if has is None else 'yes' if has else 'no'}" for flag, has in cpu.flags.items()
    )
    lines = [
        f"mtlc {result.mtlc}, Python {result.python}, {result.system}",
        f"{cpu.name}, {cpu.threads} threads: {flags}",
        f"CUDA: {result.cuda or 'none'}",
        f"instructions: {result.instructions.why or 'can be counted'}",
        f"TensorRT: {_tensorrt(result.tensorrt)}",
        f"runs bundles with: {', '.join(name for name, here in result.backends.items() if here) or 'nothing'}",
        *_speed(result),
        "",
        table(
            ("package", "version", "for", "to get it"),
            [
                (name, found.version or "missing", found.purpose, found.install or "")
                for name, found in result.packages.items()
            ],
        ),
    ]
    return "\n".join(lines)


def _speed(result: DoctorResult) -> list[str]:
    """How fast this machine is at best, a line for each kind of work."""
    if result.speed is None:
        return [f"speed: {result.speed_why}"]
    told = "now" if result.speed.file is None else f"by mtlc calibrate on {result.speed.measured}"
    lines = [f"speed at best, measured {told}:"]
    for name, rate in result.speed.rates.items():
        if rate.ms_per_gmac is None:
            lines.append(f"  {name}: {rate.value / 1e9:.3g} GB/s")
        else:
            lines.append(f"  {name}: {rate.value / 1e9:.3g} GMAC/s, so 1 GMAC takes {rate.ms_per_gmac:.3g} ms or more")
    return [*lines, *(f"  {name}: none; {why}" for name, why in result.speed.missing.items())]


def _tensorrt(found: TensorRtHere) -> str:
    """What is here of a TensorRT, a GPU and its driver, and what is missing."""
    parts = [f"{found.module} {found.version}"] if found.module else []
    if found.gpu:
        parts.append(
            f"{found.gpu} (compute capability {found.compute_capability}, driver for CUDA {found.driver_cuda})"
        )
    return "; ".join([*parts, *found.missing])


@click.command()
@click.option("--speed", is_flag=True, help="Measure for 2 s how fast this machine is (needs onnx).")
@JSON
@DEBUG
def doctor(speed: bool, as_json: bool) -> None:
    """Say what is installed, what is missing and how to get it, and what this processor can do, how fast."""
    from mtlc.workflows.doctor import doctor as examine

    emit(as_json, examine(speed, log_line), text)
