"""Reads the options of ``mtlc doctor``, calls it, and prints what it found for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mtlc.commands.options import DEBUG, JSON
from mtlc.commands.output import emit
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


def _tensorrt(found: TensorRtHere) -> str:
    """What is here of a TensorRT, a GPU and its driver, and what is missing."""
    parts = [f"{found.module} {found.version}"] if found.module else []
    if found.gpu:
        parts.append(
            f"{found.gpu} (compute capability {found.compute_capability}, driver for CUDA {found.driver_cuda})"
        )
    return "; ".join([*parts, *found.missing])


@click.command()
@JSON
@DEBUG
def doctor(as_json: bool) -> None:
    """Say what is installed, what is missing and how to get it, and what this processor can do."""
    from mtlc.workflows.doctor import doctor as examine

    emit(as_json, examine(), text)
