"""Runs a bundle on a camera's frames, always the newest, with the base install alone.

    ffmpeg -loglevel error -i /dev/video0 -f rawvideo -pix_fmt rgb24 -s 256x256 - | \\
        python camera_loop.py bundle.mtlc --size 256x256 --task depth

Any program that writes raw RGB frames will do: `rpicam-vid` behind ffmpeg on a Raspberry Pi, a decoder of a video file,
`gst-launch-1.0`. A thread reads them and keeps the last one only, so the answers never lag behind the camera: what the
network is too slow for is dropped and counted. Frames of another size than the network's are resized as the bundle
says. With ``--target-ms`` a bundle of several widths changes its own to stay under that time.
"""

from __future__ import annotations

import argparse
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mtlc.errors import MtlcError, UserError
from mtlc.runtime import Session


class NewestFrame:
    """Reads frames (H, W, 3) of uint8 from a stream in a thread, and hands out the last one.

    The stream is a raw one: a buffered one would be locked by a thread that waits in it when the program ends.
    """

    def __init__(self, stream: io.RawIOBase, height: int, width: int) -> None:
        self._stream, self._shape = stream, (height, width, 3)
        self._changed = threading.Condition()
        self._frame: np.ndarray | None = None
        self._ended = False
        self.read = 0
        threading.Thread(target=self._read, daemon=True).start()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames until the stream ends; the last one is always among them."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._frame is not None or self._ended)
                if self._frame is None:
                    return
                frame, self._frame = self._frame, None
            yield frame

    def _read(self) -> None:
        while (frame := self._next()) is not None:
            with self._changed:
                self._frame = frame
                self.read += 1
                self._changed.notify()
        with self._changed:
            self._ended = True
            self._changed.notify()

    def _next(self) -> np.ndarray | None:
        """The next frame; None where the stream ends, in its midst too."""
        frame = np.empty(self._shape, np.uint8)
        rest = memoryview(frame).cast("B")
        while rest:
            count = self._stream.readinto(rest)
            if not count:
                return None
            rest = rest[count:]
        return frame


def size_of(text: str) -> tuple[int, int]:
    """(height, width) of ``WIDTHxHEIGHT``."""
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise UserError(f"--size {text}: expected WIDTHxHEIGHT, such as 256x256") from None
    if min(width, height) < 1:
        raise UserError(f"--size {text}: expected sizes of 1 or more")
    return height, width


def runner(session: Session, tasks: list[str] | None, target_ms: float | None) -> Callable[[Any], Any]:
    """What is called with an input: the session, or a governor of its widths."""
    if target_ms is not None:
        return session.governor(target_ms, tasks=tasks).run
    return lambda x: session.run(x, tasks)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--size", required=True, help="of the frames on stdin, WIDTHxHEIGHT")
    parser.add_argument("--task", action="append", help="may be given again; default: all")
    parser.add_argument("--target-ms", type=float, help="for a bundle of several widths")
    options = parser.parse_args()
    height, width = size_of(options.size)
    with Session(options.bundle, eager=True) as session:
        run = runner(session, options.task, options.target_ms)
        run(session.preprocess(np.zeros((height, width, 3), np.uint8)))  # says what does not fit before the first
        frames, done, spent = NewestFrame(io.FileIO(sys.stdin.fileno(), closefd=False), height, width), 0, 0.0
        for frame in frames:
            started = time.perf_counter()
            outputs = run(session.preprocess(frame))
            milliseconds = 1e3 * (time.perf_counter() - started)
            done, spent = done + 1, spent + milliseconds
            # Here goes what a device does with them; this only shows that they are there.
            told = "  ".join(f"{task} {array.shape} mean {array.mean():.4g}" for task, array in outputs.items())
            print(f"{milliseconds:6.1f} ms  {told}", flush=True)
        print(f"{done} of {frames.read} frames, {spent / max(done, 1):.1f} ms each", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except MtlcError as error:
        sys.exit(f"error: {error}")
