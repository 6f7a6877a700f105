"""Describes how long both networks take on the machine of the run, layer by layer, and their memory and start."""

from __future__ import annotations

from mtlc.results.base import Result


class Machine(Result):
    """The machine that measured."""

    name: str | None = None
    """What it is called among the devices."""
    cpu: str | None = None
    """Model of the processor."""
    cores: int | None = None
    """Cores that the process may use."""
    machine: str | None = None
    """Architecture, such as ``x86_64``."""
    system: str | None = None
    """Operating system."""
    python: str | None = None
    """Version of Python."""
    onnxruntime: str | None = None
    """Version of onnxruntime; None where it is not installed."""
    load_1min: float | None = None
    """Mean number of running processes in the minute before."""


class Instructions(Result):
    """Instructions that one call retires in all threads, in user space."""

    median: float
    """Median over the rounds."""
    p10: float | None = None
    """What one round in ten is below."""
    p90: float | None = None
    """What one round in ten is above."""
    spread: float | None = None
    """(p90 − p10) / median."""


class Memory(Result):
    """Memory and start of a bundle: medians over fresh processes."""

    kind: str = "measured"
    """How the figures came about."""
    processes: int | None = None
    """Number of processes."""
    baseline_bytes: int | None = None
    """Peak of the process before the bundle is opened, in bytes."""
    peak_bytes: int | None = None
    """Peak of the process after the first run, in bytes."""
    added_bytes: int | None = None
    """The difference of the two, in bytes."""
    cold_ms: float | None = None
    """Time from opening the bundle to the end of its first run, in ms."""
    cold_min_ms: float | None = None
    """The least of these times, in ms."""
    cold_max_ms: float | None = None
    """The greatest of these times, in ms."""
    why: str | None = None
    """Why the bytes are not known; None if they are."""


class BundleLatency(Result):
    """Times of one call of a bundle, over all rounds."""

    median_ms: float
    """Median, in ms."""
    p10_ms: float | None = None
    """What one call in ten is below, in ms."""
    p90_ms: float | None = None
    """What one call in ten is above, in ms."""
    p99_ms: float | None = None
    """What one call in a hundred is above, in ms."""
    mean_ms: float | None = None
    """Mean, in ms."""
    min_ms: float | None = None
    """The fastest call, in ms."""
    spread: float | None = None
    """(p90 − p10) / median."""
    cpu_median_ms: float | None = None
    """Median of the processor time of all threads, in ms."""
    instructions: Instructions | None = None
    """Instructions of a call; None where they cannot be counted."""
    memory: Memory | None = None
    """Memory and start."""


class LayerTimes(Result):
    """The time of a layer, from the runtime's own profile; None where a network does not have it."""

    name: str
    """Module path; empty for the network itself, in parentheses what belongs to no layer."""
    before_ms: float | None = None
    """In the original network, in ms."""
    after_ms: float | None = None
    """In the compressed network, in ms."""


class LatencyResult(Result):
    """The latency of both bundles on one validation sample, measured in turns."""

    kind: str = "measured"
    """How the times came about."""
    device: Machine = Machine()
    """Where."""
    threads: int | None = None
    """Threads of each program."""
    batch: int | None = None
    """Samples of one call."""
    rounds: int | None = None
    """Timed calls of each bundle."""
    instructions_why: str | None = None
    """Why instructions are not counted; None if they are."""
    before: BundleLatency | None = None
    """The original network's bundle."""
    after: BundleLatency | None = None
    """The compressed network's bundle."""
    speedup: float | None = None
    """Median over the rounds of before / after."""
    ideal: float | None = None
    """The speed-up if time fell as MACs did."""
    layers: list[LayerTimes] = []
    """Layers that took time, in the order of the original network."""
