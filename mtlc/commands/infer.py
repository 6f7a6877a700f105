"""Reads the options of ``mtlc infer``, calls it, and prints what it found for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlc.commands.options import BACKEND, BUNDLE, CONFIGURATION, DEBUG, JSON, PATH, THREADS
from mtlc.commands.output import emit

if TYPE_CHECKING:
    from mtlc.results.infer import InferResult


def text(result: InferResult) -> str:
    """The files that were written, a line each."""
    return "\n".join(entry.picture for entry in result.tasks.values())


@click.command()
@BUNDLE
@click.argument("image", type=PATH)
@click.option("--task", "tasks", multiple=True, help="A task to run; may be given again. Default: all.")
@click.option("--out", type=PATH, default=".", show_default=True, help="Folder for the pictures.")
@click.option("--raw", is_flag=True, help="Also write the numbers, as TASK.npy.")
@CONFIGURATION
@BACKEND
@THREADS
@JSON
@DEBUG
def infer(
    bundle: Path,
    image: Path,
    tasks: tuple[str, ...],
    out: Path,
    raw: bool,
    configuration: str | None,
    backend: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Run BUNDLE on IMAGE and write one PNG for each task. Needs no torch."""
    from mtlc.workflows.infer import infer as predict

    result = predict(bundle, image, tasks, out, raw=raw, backend=backend, threads=threads, configuration=configuration)
    emit(as_json, result, text)
