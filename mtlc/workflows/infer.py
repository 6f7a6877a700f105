"""Runs a bundle on one picture: ``mtlc infer``. Needs the base install, and Pillow for the pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtlc.errors import UserError
from mtlc.files import atomic_file, user_errors
from mtlc.results.infer import InferredTask, InferResult
from mtlc.runtime import Session, picture, read_image, write_png


def infer(
    bundle: Path,
    image: Path,
    tasks: Sequence[str] = (),
    out: Path = Path(),
    *,
    raw: bool = False,
    backend: str = "auto",
    threads: int | None = None,
    configuration: str | None = None,
) -> InferResult:
    """Write ``<out>/<task>.png`` for each task (all of the bundle's if none is named), at the network's resolution.

    The picture is resized to the network's input. With `raw`, ``<task>.npy`` holds the output as it is, (C, H, W).
    `configuration` is what the bundle runs in, if not its default. Raises `UserError`, `BundleError` or `Unavailable`.
    """
    image = Path(image)
    if not image.is_file():
        raise UserError(f"{image}: no such picture")
    with Session(bundle, backend=backend, threads=threads) as session:
        if configuration is not None:
            session.configure(configuration)
        taken = session.manifest.inputs[0]
        if len(session.manifest.inputs) != 1 or len(taken.shape) != 4:
            names = ", ".join(f"{i.name} {i.shape}" for i in session.manifest.inputs)
            raise UserError(f"{bundle}: takes {names}, not one picture; run it with mtlc.runtime.Session")
        height, width = taken.shape[-2:]
        size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        x = session.preprocess(read_image(image, size))
        wanted = tuple(tasks) or tuple(session.tasks)
        started = time.perf_counter()
        outputs = session.run(x, tasks=wanted)
        milliseconds = (time.perf_counter() - started) * 1e3
        written: dict[str, InferredTask] = {}
        for task, array in outputs.items():
            if array.ndim != 4:
                raise UserError(
                    f"task {task!r} gives {array.shape}, which is no picture; run it with mtlc.runtime.Session"
                )
            shown = picture(session.tasks[task].kind, array[0])
            with atomic_file(out / f"{task}.png") as temporary:
                write_png(temporary, shown)
            made = InferredTask(picture=str(out / f"{task}.png"), shape=list(array.shape[1:]))
            if raw:
                with user_errors(out), atomic_file(out / f"{task}.npy") as temporary, temporary.open("wb") as file:
                    np.save(file, array[0])
                made = made.model_copy(update={"raw": str(out / f"{task}.npy")})
            written[task] = made
        programs = list(session.programs(wanted))
    # The first run loads the programs, so this is no latency: `mtlc profile` measures that.
    return InferResult(
        bundle=str(bundle), image=str(image), tasks=written, programs=programs, first_run_ms=milliseconds
    )
