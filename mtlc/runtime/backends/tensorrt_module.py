"""Imports TensorRT's Python module when asked for: ``tensorrt`` or ``tensorrt_rtx``, which share their interface."""

from __future__ import annotations

import threading
from functools import cache
from importlib import import_module
from typing import Any

from mtlc.errors import Unavailable
from mtlc.extras import missing_extra
from mtlc.runtime.bundle.manifest import ENGINE_MODULES

_KEPT = 20


def find_tensorrt(name: str | None = None) -> Any:
    """The module called `name`, or the first of ``tensorrt`` and ``tensorrt_rtx`` that is here.

    Raises `Unavailable` with what to install.
    """
    broken = None
    for candidate in ENGINE_MODULES if name is None else (name,):
        try:
            return import_module(candidate)
        except ModuleNotFoundError as error:
            if error.name != candidate:
                broken = f"{candidate} cannot be imported ({error})"
        except (ImportError, OSError, RuntimeError) as error:  # its libraries are missing, or are another version's
            broken = f"{candidate} cannot be imported ({str(error).splitlines()[0]})"
    if broken is not None:
        raise Unavailable(broken)
    if name == "tensorrt":
        raise Unavailable("tensorrt is not installed: NVIDIA brings it to Jetsons; elsewhere pip install tensorrt")
    raise missing_extra("tensorrt_rtx")


class Messages:
    """What TensorRT reported as an error, newest last; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: list[str] = []

    def add(self, text: str) -> None:
        with self._lock:
            self._lines = [*self._lines, text.strip().splitlines()[0] if text.strip() else "unknown"][-_KEPT:]

    def clear(self) -> None:
        with self._lock:
            self._lines = []

    def first(self) -> str:
        """The first error since `clear`: those after it tend to follow from it."""
        with self._lock:
            return self._lines[0] if self._lines else "TensorRT gives no reason"


@cache
def logger(module: Any) -> tuple[Any, Messages]:
    """A silent logger for that module, and what it hears. TensorRT takes one logger for a whole process."""
    messages = Messages()

    class Listener(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.Severity.INTERNAL_ERROR, module.ILogger.Severity.ERROR):
                messages.add(message)

    return Listener(), messages
