"""Runs a bundle on the frames of a video or a camera, with OpenCV, and writes them as a video or as pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mtlc.errors import Unavailable, UserError
from mtlc.extras import missing_extra
from mtlc.files import atomic_file, make_folder
from mtlc.log import Log, bar
from mtlc.results.infer import InferredSource
from mtlc.runtime import write_png
from mtlc.runtime.pictures import check_pixels
from mtlc.workflows.infer_sources import Source

Frame = Callable[[np.ndarray, dict[str, tuple[float, float]]], np.ndarray]
"""Makes the picture of a frame (H, W, 3) RGB, and remembers the ranges of colours."""
_FRAMES_PER_SECOND = 25.0
"""Of a video that does not say."""


def run_video(
    source: Source, out: Path, frame: Frame, form: Literal["video", "png"], frames: int | None, seconds: float | None,
    log: Log,
) -> InferredSource:  # fmt: skip
    """Give every frame to `frame`, and write what it makes to `out`: ``NAME-tasks.mp4``, or a PNG for each frame.

    Ends after `frames` or `seconds` (of a video its own seconds, of a camera those of the clock), and with Ctrl-C; what
    was done by then is written. Raises `Unavailable` without OpenCV or the camera, `UserError` for a video that cannot
    be read or written.
    """
    cv2 = _opencv()
    capture = _opened(cv2, source)
    try:
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        rate = rate if 0 < rate <= 1000 else _FRAMES_PER_SECOND
        limit = frames
        if seconds is not None and source.kind == "video":
            limit = min(max(1, round(seconds * rate)), frames or 1 << 62)
        until = None if seconds is None or source.kind == "video" else time.monotonic() + seconds
        started = time.monotonic()
        target = out / f"{source.name}-tasks.mp4" if form == "video" else out / f"{source.name}-tasks"
        count = _write(cv2, _pictures(cv2, capture, source, frame, limit, until, log), target, form, rate, source)
        took = time.monotonic() - started
    finally:
        capture.release()
    return InferredSource(
        source=str(source.path), kind=source.kind, beside=str(target), frames=count,
        frames_per_second=count / took if took > 0 else None,
    )  # fmt: skip


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise missing_extra("cv2") from None
    if hasattr(cv2, "setLogLevel"):
        cv2.setLogLevel(0)  # its warnings would stand between our lines
    return cv2


def _opened(cv2: Any, source: Source) -> Any:
    capture = cv2.VideoCapture(int(source.path.name) if source.kind == "camera" else str(source.path))
    if capture.isOpened():
        return capture
    capture.release()
    if source.kind == "camera":
        raise Unavailable(f"camera {source.path}: there is none of this number, or another program is using it")
    raise UserError(f"{source.path}: not a video that OpenCV can read")


def _pictures(
    cv2: Any, capture: Any, source: Source, frame: Frame, limit: int | None, until: float | None, log: Log
) -> Iterator[np.ndarray]:
    """What `frame` makes of each frame, in BGR."""
    ranges: dict[str, tuple[float, float]] = {}
    known = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if source.kind == "video" else 0
    total = limit if known <= 0 else known if limit is None else min(limit, known)
    number = 0
    with bar("frames", total) as done:
        try:
            while limit is None or number < limit:
                read, image = capture.read()
                if not read or (until is not None and time.monotonic() > until):
                    return
                if not number:
                    check_pixels(source.path, image.shape[1], image.shape[0])
                yield np.ascontiguousarray(frame(np.ascontiguousarray(image[..., ::-1]), ranges)[..., ::-1])
                number += 1
                done(1)
        except KeyboardInterrupt:
            log(f"stopped after {number} frames")


def _write(
    cv2: Any, pictures: Iterator[np.ndarray], target: Path, form: Literal["video", "png"], rate: float, source: Source
) -> int:
    first = next(pictures, None)
    if first is None:
        raise UserError(f"{source.path}: no frame could be read")
    if form == "png":
        make_folder(target)
        count = 0
        for count, image in enumerate(_all(first, pictures), 1):
            with atomic_file(target / f"{count:06d}.png") as temporary:
                write_png(temporary, image[..., ::-1])
        return count
    if target.resolve() == source.path.resolve():
        raise UserError(f"{target}: is the source, and would be written over: choose another --out")
    with ExitStack() as stack:
        temporary = stack.enter_context(atomic_file(target))
        height, width = (side - side % 2 for side in first.shape[:2])  # codecs take even sides
        writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter_fourcc(*"mp4v"), rate, (width, height))
        if not writer.isOpened():
            writer.release()
            raise UserError(f"{target}: OpenCV cannot write a video of {width} x {height}: try --format png")
        count = 0
        try:
            for image in _all(first, pictures):
                writer.write(np.ascontiguousarray(image[:height, :width]))
                count += 1
        finally:
            writer.release()
    return count


def _all(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from rest
