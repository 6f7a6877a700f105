"""Reads the options of ``mtlc infer``, calls it, and prints what it found for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from mtlc.commands.options import BACKEND, BUNDLE, CONFIGURATION, DEBUG, JSON, LOG_LEVEL, PATH, THREADS
from mtlc.commands.output import emit, listener

if TYPE_CHECKING:
    from mtlc.results.infer import InferredTask, InferResult, InferSeveralResult


def text(result: InferResult | InferSeveralResult) -> str:
    """What was written, a line each; and the class of a whole picture."""
    from mtlc.results.infer import InferResult

    if isinstance(result, InferResult):
        return "\n".join([*_tasks(result.tasks), *([result.beside] if result.beside else [])])
    lines: list[str] = []
    for one in result.sources:
        lines += _tasks(one.tasks)
        if one.beside is not None:
            speed = "" if one.frames_per_second is None else f", {one.frames_per_second:.3g} frames a second"
            lines.append(one.beside + ("" if one.frames is None else f"  {one.frames} frames{speed}"))
    return "\n".join(dict.fromkeys(lines))


def _tasks(tasks: Mapping[str, InferredTask]) -> Iterator[str]:
    for name, entry in tasks.items():
        if entry.classified is not None:
            called = "" if entry.classified.name is None else f" ({entry.classified.name})"
            yield f"{name}: class {entry.classified.label}{called}"
        yield from (path for path in (entry.picture, entry.boxes, entry.raw) if path)


@click.command()
@BUNDLE
@click.argument("sources", type=PATH, nargs=-1, required=True, metavar="SOURCE...")
@click.option("--task", "tasks", multiple=True, help="A task to run; may be given again. Default: all.")
@click.option("--out", type=PATH, default=".", show_default=True, help="Folder for what is written.")
@click.option("--raw", is_flag=True, help="Also write the numbers of pictures, as TASK.npy.")
@click.option("--beside", is_flag=True, help="Also write the picture and all tasks beside each other, as beside.png.")
@click.option("--frames", type=click.IntRange(1), help="End a video or a camera after so many frames.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="End a video or a camera after so long.")
@click.option(
    "--format", "form", type=click.Choice(("video", "png")), default="video", show_default=True,
    help="What a video or a camera is written as.",
)  # fmt: skip
@CONFIGURATION
@BACKEND
@THREADS
@JSON
@DEBUG
@LOG_LEVEL
def infer(
    bundle: Path,
    sources: tuple[Path, ...],
    tasks: tuple[str, ...],
    out: Path,
    raw: bool,
    beside: bool,
    frames: int | None,
    seconds: float | None,
    form: Literal["video", "png"],
    configuration: str | None,
    backend: str,
    threads: int | None,
    as_json: bool,
    log_level: str,
) -> None:
    """Run BUNDLE on each SOURCE and write what its tasks say. Needs no torch.

    A SOURCE is a picture, a folder, an .npy or .npz of arrays, a video, or the number of a camera (mtlc[video]).
    """
    from mtlc.workflows.infer import InferOptions
    from mtlc.workflows.infer import infer as predict

    result = predict(
        bundle, sources, tasks, out, backend=backend, threads=threads, configuration=configuration,
        options=InferOptions(raw, beside, frames, seconds, form), log=listener(log_level)["log"],
    )  # fmt: skip
    emit(as_json, result, text)
