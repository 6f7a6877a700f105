"""Describes what ``mtlc bench`` found: a row for each bundle, configuration, backend and number of threads."""

from __future__ import annotations

from mtlc.results.base import Result
from mtlc.results.latency import Instructions, Load, Machine, Memory, Ratio


class BenchRow(Result):
    """One bundle in one setting."""

    bundle: str
    """Path of the bundle."""
    configuration: str | None
    """What it runs in; None for its default."""
    precision: str
    """Precision of its weights and products in this backend, such as ``fp32`` or ``int8``."""
    bytes: int
    """Size of its files, in bytes."""
    backend: str
    """What runs it."""
    version: str | None
    """Version of the backend's package; None where it has none."""
    threads: int
    """Threads of each program."""
    median_ms: float
    """Median of a call, in ms."""
    p10_ms: float
    """What one call in ten is below, in ms."""
    p90_ms: float
    """What one call in ten is above, in ms."""
    p99_ms: float
    """What one call in a hundred is above, in ms."""
    mean_ms: float
    """Mean of a call, in ms."""
    min_ms: float
    """The fastest call, in ms."""
    spread: float
    """(p90 − p10) / median."""
    cpu_median_ms: float
    """Median of the processor time of all threads, in ms."""
    instructions: Instructions | None
    """Instructions of a call; None where they cannot be counted."""
    throughput: float
    """Samples per second of the timed calls, one after the other."""
    memory: Memory
    """Memory and start, in fresh processes."""
    faster: Ratio | None
    """How many times as fast it is as the first row; None for the first."""


class BenchResult(Result):
    """Bundles against each other, measured in turns on the same random inputs."""

    kind: str
    """How the figures came about: ``measured``."""
    device: Machine
    """Where."""
    batch: int
    """Samples of one call."""
    rounds: int
    """Timed calls of each row."""
    warmup: int
    """Calls before the timed ones."""
    tasks: list[str] | None
    """The tasks that a call runs; None for all."""
    instructions_why: str | None
    """Why instructions are not counted; None if they are."""
    fixed_batch: bool
    """Whether sessions were told their batch."""
    load: Load | None = None
    """What other processes did meanwhile."""
    doubts: list[str] = []
    """What makes all these times doubtful, a line each."""
    rows: list[BenchRow]
    """A row for each setting."""
