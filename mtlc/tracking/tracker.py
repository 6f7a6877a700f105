"""Says what a tracker is: something that keeps the parameters, metrics and files of runs.

Ours are listed in `mtlc.tracking.registry`; packages add theirs under the entry-point group ``mtlc.trackers``
(``docs/extending.md``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

State = Literal["finished", "failed"]


@dataclass(frozen=True)
class TrackedRun:
    """What is known of a run as it begins."""

    name: str
    """What to call it."""
    verb: str
    """``run``, ``slim`` or ``train``."""
    folder: Path
    """Where it writes."""
    parameters: Mapping[str, str | int | float | bool]
    """The values of the job by dotted key, without its section ``[track]``."""
    earlier: str | None = None
    """What `Tracker.start` returned when a run in this folder was last begun; None for a first one."""


class Tracker(Protocol):
    """Keeps runs. Made with the options of the job as keyword arguments, it raises `UserError` for a wrong one.

    Whatever a method raises is told as one warning, and the run goes on without the tracker. Methods are called from
    one thread, `start` first and `end` last.
    """

    name: str

    def start(self, run: TrackedRun) -> str | None:
        """Begin a run, or go on with the `earlier` one; what names it, to go on with it another time."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Keep numbers by name, such as ``01-prune/training-1/loss/depth``; all are finite."""

    def artifact(self, path: Path) -> None:
        """Keep a file, or a folder with all that is in it."""

    def end(self, state: State) -> None:
        """Close the run."""
