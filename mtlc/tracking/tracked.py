"""Tells the trackers of a run, whatever depth of the code something was measured at, and never fails for one of them.

Who runs a verb opens `tracked_run`; within it `measured` anywhere reaches the trackers, under the names of the `within`
blocks around it. Without trackers all of it does nothing.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtlc.checksums import read_sealed, value_checksum, write_sealed
from mtlc.errors import one_line
from mtlc.log import Log, silent
from mtlc.tracking.tracker import State, TrackedRun, Tracker

KEPT = "tracking.json"
"""In the output folder, sealed: what names the run in each tracker, so that a run that was cut off goes on there."""
_VALUES = "parameters of the run"
_SECRET = re.compile(r"TOKEN|PASSWORD|SECRET|API_?KEY", re.IGNORECASE)


@dataclass
class _Trackers:
    """The trackers of the run that is under way."""

    trackers: list[Tracker]
    log: Log
    parts: tuple[str, ...] = ()
    counts: dict[tuple[str, ...], int] = field(default_factory=dict)

    def each(self, call: Callable[[Tracker], Any]) -> dict[str, Any]:
        """What the call gives for each tracker, by name. One that raises is told of, and left out from then on."""
        found = {}
        for one in list(self.trackers):
            try:
                found[one.name] = call(one)
            except Exception as error:  # of a service, a disk, a stranger's package: none may cost a run
                self.trackers.remove(one)
                self.log(f"warning: tracker {one.name!r} failed; the run goes on without it: {without_secrets(error)}")
        return found


_now: ContextVar[_Trackers | None] = ContextVar("trackers", default=None)


@contextmanager
def tracked_run(run: TrackedRun, trackers: list[Tracker], log: Log = silent) -> Iterator[None]:
    """Within the block, what is measured goes to the trackers. A block that raises is a run that failed."""
    if not trackers:
        yield
        return
    told = _Trackers(list(trackers), log)
    path = run.folder / KEPT
    kept = read_sealed(path, log, "a new run is begun in each tracker") or {}
    # A run of other values is another run.
    values = value_checksum({key: str(value) for key, value in run.parameters.items()})
    if kept.get(_VALUES) != values:
        kept = {}

    def start(one: Tracker) -> str | None:
        earlier = kept.get(one.name)
        return one.start(
            TrackedRun(run.name, run.verb, run.folder, run.parameters, earlier if isinstance(earlier, str) else None)
        )

    names = told.each(start)
    write_sealed(path, {_VALUES: values, **{name: value for name, value in names.items() if value is not None}})
    token = _now.set(told)
    state: State = "failed"
    try:
        yield
        state = "finished"
        path.unlink(missing_ok=True)  # the next one here is a new one
    finally:
        _now.reset(token)
        told.each(lambda one: one.end(state))


def measured(values: Mapping[str, float | None], step: int = 0, what: str = "") -> None:
    """Tell the trackers of numbers by name, in front of which `what` comes; those that are no number are left out."""
    told = _now.get()
    if told is None:
        return
    before = "/".join((*told.parts, what) if what else told.parts)
    numbers = {
        f"{before}/{name}" if before else name: float(value)
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    }
    if numbers:
        told.each(lambda one: one.metrics(numbers, step))


def made(path: Path) -> None:
    """Tell the trackers of a file or folder that the run made; one that is not there is none."""
    told = _now.get()
    if told is not None and path.exists():
        told.each(lambda one: one.artifact(path))


@contextmanager
def within(name: str, numbered: bool = False) -> Iterator[None]:
    """Within the block, names of what is measured begin with `name`; `numbered`, its number within the run comes after:
    ``training-2``.
    """
    told = _now.get()
    if told is None:
        yield
        return
    place = (*told.parts, name)
    if numbered:
        told.counts[place] = told.counts.get(place, 0) + 1
        place = (*told.parts, f"{name}-{told.counts[place]}")
    before, told.parts = told.parts, place
    try:
        yield
    finally:
        told.parts = before


def without_secrets(error: BaseException) -> str:
    """An exception in a line, without what may be secret in it: passwords of addresses, and the values of variables
    of the environment that are called tokens, passwords or keys.
    """
    text = re.sub(r"://[^/\s@]*@", "://…@", one_line(error))
    text = re.sub(
        r"([?&;][\w.-]*(?:token|key|password|secret|sig)[\w.-]*=)[^&\s'\"]*", r"\1…", text, flags=re.IGNORECASE
    )
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 4:
            text = text.replace(value, "…")
    return text
