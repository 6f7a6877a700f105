"""Finds the backend that loads a program's file and runs it.

A backend is a class without constructor arguments that has what `Backend` lists. Packages add their own under the
entry-point group ``mtlc.backends``. One that has the attribute `cache` or `batch` is told what `Session` was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np

from mtlc.entry_points import added_names, find_addition
from mtlc.errors import MtlcError, Unavailable, nearest, one_line

GROUP = "mtlc.backends"
"""The entry points under which packages add backends."""

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
    """The backend called `name`; ``"auto"`` is onnxruntime.

    Raises `Unavailable` if it is unknown or not installed, and `UserError` naming the package and the entry point if
    what a package brings is no backend.
    """
    if name == "auto":
        name = "onnxruntime"
    if name in _BUILT_IN:  # before any package is looked at: reading entry points would add to every start
        module, attribute = _BUILT_IN[name]
        backend: Backend = getattr(import_module(module), attribute)()
        return backend
    for built_in in _BUILT_IN:
        find_addition(GROUP, built_in, _BUILT_IN)  # refuses a package that takes a name of ours
    added = find_addition(GROUP, name)
    if added is None:
        raise Unavailable(f"no backend {name!r} is installed{nearest(name, [*_BUILT_IN, *added_names(GROUP)])}")
    make = added.load()
    try:
        backend = make()
    except MtlcError:  # the package says itself what is missing
        raise
    except Exception as error:
        raise added.refused(f"making it without arguments raised {one_line(error)}") from error
    if not isinstance(getattr(backend, "name", None), str) or not callable(getattr(backend, "load", None)):
        raise added.refused(f"a {type(backend).__name__} has no name and load(file, threads, profile) of a backend")
    return backend
