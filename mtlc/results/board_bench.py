"""Describes what ``mtlc bench --on`` found on a board."""

from __future__ import annotations

from mtlc.results.base import Result


class BoardRow(Result):
    """One bundle in one setting, on the board. Times are of the C library, in ms."""

    bundle: str
    """Path of the bundle here."""
    configuration: str | None
    """What it runs in; None for its default."""
    threads: int
    """Threads of each program."""
    median_ms: float
    """Median over the turns of each turn's median."""
    turns_ms: list[float]
    """The median of each turn."""
    min_ms: float
    """The fastest call."""
    p95_ms: float
    """What one call in twenty is above: the median over the turns."""
    cpu_ms: float
    """Processor time of a call, of all threads: the median over the turns."""
    open_ms: float
    """To open and load it in a new process, the engine's own start with it: the median over the turns."""
    first_ms: float
    """The first call after that."""
    peak_bytes: int
    """The most memory that the process held, in bytes."""
    faster: list[float] | None
    """How many times as fast as the first row it is in each turn; None for the first."""


class BoardState(Result):
    """What a board said of itself."""

    machine: str
    """Its processor, as ``uname -m`` says."""
    celsius: list[float]
    """Temperatures of its thermal zones, in °C; empty where they cannot be read."""
    clock_mhz: list[float]
    """Clocks of its cores, in MHz; empty where they cannot be read."""
    governor: str | None
    """What sets the clocks; None where that cannot be read."""


class BoardBenchResult(Result):
    """Bundles against each other on a board, in turns."""

    kind: str
    """How the figures came about: ``measured``."""
    board: str
    """The device's name."""
    place: str
    """Where it was reached."""
    target: str
    """What the packages were made for."""
    engine: str | None
    """Where the engine that was copied there came from."""
    before: BoardState
    """The board before the first turn."""
    after: BoardState
    """The board after the last one."""
    sent_bytes: int
    """What had to be copied to it, in bytes."""
    batch: int
    """Samples of one call."""
    runs: int
    """Timed calls of a turn."""
    tasks: list[str] | None
    """The tasks that a call runs; None for all."""
    rows: list[BoardRow]
    """A row for each setting."""
