"""Backends: what loads a program's file and runs it.

A backend is a class without constructor arguments that has the two methods of `Backend`. Packages add their own under
the entry-point group ``mtlc.backends``. One that has the attribute `cache` or `batch` is told what `Session` was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np

from mtlc.errors import Unavailable, nearest

_BUILT_IN = {
    "onnxruntime": ("mtlc.runtime.backends.onnxruntime_backend", "OnnxRuntime"),
    "openvino": ("mtlc.runtime.backends.openvino_backend", "OpenVINO"),
    "tensorrt": ("mtlc.runtime.backends.tensorrt_backend", "TensorRT"),
}


class Executable(Protocol):
    """A loaded program. `run` may be called from several threads at once."""

    def run(self, outputs: Sequence[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The named output tensors for the given input tensors. The arrays are the caller's."""

    def end_profile(self) -> Path | None:
        """Stop profiling and give the file that holds the profile, if profiling was asked for."""

    def close(self) -> None:
        """Free what the program holds."""


class Backend(Protocol):
    """Loads programs. The files that `load` gets have been checked."""

    name: str

    def load(self, file: Path, threads: int | None, profile: str | None) -> Executable:
        """Load the program in `file`. `threads` per program, None for its choice; `profile` a path prefix."""


def find_backend(name: str) -> Backend:
    """The backend called `name`; ``"auto"`` is onnxruntime. Raises `Unavailable` if it is unknown or not installed."""
    if name == "auto":
        name = "onnxruntime"
    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name]
        return getattr(import_module(module), attribute)()
    from importlib.metadata import entry_points  # 15 ms that only a third-party backend pays

    points = {point.name: point for point in entry_points(group="mtlc.backends")}
    if name not in points:
        raise Unavailable(f"no backend {name!r} is installed{nearest(name, [*_BUILT_IN, *points])}")
    return points[name].load()()
