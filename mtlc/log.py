"""Names where lines for a person go, and shows bars of how far long work is.

A `Log` is any function that takes a line. Lines that begin with ``warning: `` are warnings; what only a search for a
fault needs is told with `debug`, which a plain function never sees.

Bars are not handed from call to call: whoever wants them opens `shown_bars`, and loops far below are `tracked`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal, TypeVar

Log = Callable[[str], None]
"""Takes one line for a person, without its newline. The command line prints it on stderr."""
Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")
"""What is told, from all to nothing but errors, which are raised and not logged."""
WARNING = "warning: "
T = TypeVar("T")

_DEEPEST = 2
"""Bars that are shown at a time, one within the other."""
_DELAY = 0.5
"""Seconds that work takes before its bar is shown."""


def silent(line: str) -> None:
    """Drop the line: what a function logs to unless it is told otherwise."""


def debug(log: Log, line: str) -> None:
    """Tell `log` a line that only a search for a fault needs, if it asks for such: a `LevelledLog` at ``"debug"``."""
    tell = getattr(log, "debug", None)
    if callable(tell):
        tell(line)


class LevelledLog:
    """Hands to `write` the lines of a level and above. At ``"debug"`` each begins with the seconds since the first."""

    def __init__(self, write: Log, level: Level = "info", clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._level, self._clock = write, LEVELS.index(level), clock
        self._begun: float | None = None

    def __call__(self, line: str) -> None:
        self._tell(line, "warning" if line.startswith(WARNING) else "info")

    def debug(self, line: str) -> None:
        """Write the line if even debugging is told."""
        self._tell(line, "debug")

    def _tell(self, line: str, level: Level) -> None:
        if LEVELS.index(level) < self._level:
            return
        if self._level == LEVELS.index("debug"):
            now = self._clock()
            self._begun = now if self._begun is None else self._begun
            line = f"[{now - self._begun:8.2f} s] {line}"
        self._write(line)


class _Bars:
    """How many bars are shown at the moment."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make, self.shown = make, 0


_bars: ContextVar[_Bars | None] = ContextVar("bars", default=None)


@contextmanager
def shown_bars(wanted: bool = True) -> Iterator[None]:
    """While the block runs, `tracked` work of this thread has a bar on stderr; not `wanted`, all is as it was.

    Bars need tqdm, which the extras ``compress`` and ``images`` bring; without it there are none.
    """
    make = _tqdm() if wanted and _bars.get() is None else None
    if make is None:
        yield
        return
    token = _bars.set(_Bars(make))
    try:
        yield
    finally:
        _bars.reset(token)


@contextmanager
def hidden_bars() -> Iterator[None]:
    """While the block runs, nothing has a bar: in processes that only help another one."""
    token = _bars.set(None)
    try:
        yield
    finally:
        _bars.reset(token)


def tracked(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The items, with a bar named `what` that says how many are done and how long the rest will take.

    `total` is their number where they cannot be counted; work of unknown length has a bar without an estimate.
    """
    if total is None:
        total = len(items) if isinstance(items, Sized) else None
    with bar(what, total) as done:
        for item in items:
            yield item
            done(1)


@contextmanager
def bar(what: str, total: int | None = None) -> Iterator[Callable[[int], Any]]:
    """A bar for work that is no loop over items; the function that it gives takes how many more are done."""
    shown = _bars.get()
    if shown is None or shown.shown == _DEEPEST:
        yield lambda more: None
        return
    shown.shown += 1
    try:
        with shown.make(total=total, desc=what, delay=_DELAY, leave=False, file=sys.stderr, dynamic_ncols=True) as made:
            yield made.update
    finally:
        shown.shown -= 1


def between_bars() -> AbstractContextManager[Any]:
    """A block in which lines can be written to stderr without running into a bar."""
    tqdm = sys.modules.get("tqdm")
    return nullcontext() if tqdm is None else tqdm.tqdm.external_write_mode(file=sys.stderr)


def _tqdm() -> Callable[..., Any] | None:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    made: Callable[..., Any] = tqdm
    return made
