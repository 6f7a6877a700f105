"""Describes how long both networks take on the machine of the run, layer by layer, and their memory and start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtlc.results.base import Result

CONTRADICTION = 0.1
"""By how much the ratio of two medians may differ from the median ratio before it is in doubt."""


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


class Ratio(Result):
    """How many times as fast one is as another, round by round."""

    median: float
    """Median over the rounds."""
    p10: float
    """What one round in ten is below."""
    p90: float
    """What one round in ten is above."""
    low: float | None = None
    """Where the 95 % interval of the median begins; None in files of earlier versions."""
    high: float | None = None
    """Where it ends."""
    cpu: float | None = None
    """The same median by processor time, which other processes disturb less; None where it is not known."""
    doubt: str | None = None
    """Why the median says little, in a line; None if it is sound."""


def contradiction(ratio: float, first_ms: float, other_ms: float) -> str | None:
    """That the medians of both times, in ms, say another ratio than the rounds did, in a line; None if they agree."""
    medians = first_ms / other_ms if other_ms else ratio
    if not ratio or abs(medians / ratio - 1) <= CONTRADICTION:
        return None
    return f"the medians of the times would say {medians:.2f}x, the rounds say {ratio:.2f}x"


def cpu_in_doubt(ratio: Ratio, first: BundleLatency, other: BundleLatency) -> bool:
    """Whether the medians of both processor times say another ratio than the rounds did."""
    if ratio.cpu is None or first.cpu_median_ms is None or other.cpu_median_ms is None:
        return False
    return contradiction(ratio.cpu, first.cpu_median_ms, other.cpu_median_ms) is not None


def said_doubts(doubts: Sequence[str], ratios: Mapping[str, Ratio]) -> list[str]:
    """What makes all of a measurement doubtful, and behind it what makes single ratios so, by their labels."""
    return [*doubts, *(f"{label}: {one.doubt}" for label, one in ratios.items() if one.doubt is not None)]


class Load(Result):
    """What other processes did on the machine while something was measured."""

    load_1min: float | None = None
    """Mean number of running processes in the minute before, this one's too; None where the system does not tell."""
    cores: int | None = None
    """Cores of the machine."""
    others_cores: float | None = None
    """Cores that other processes used meanwhile, in the mean; None where the system does not tell."""
    waited_s: float | None = None
    """How long a quiet machine was waited for, in s; None where nobody asked."""


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
    ratio: Ratio | None = None
    """The same with its spread; None in files of earlier versions."""
    load: Load | None = None
    """What other processes did meanwhile; None in files of earlier versions."""
    doubts: list[str] = []
    """What makes all these times doubtful, a line each."""
    ideal: float | None = None
    """The speed-up if time fell as MACs did."""
    layers: list[LayerTimes] = []
    """Layers that took time, in the order of the original network."""

    def why_in_doubt(self) -> list[str]:
        """Why the speed-up says little, a line each; empty if it is sound, and where a file of an earlier version does
        not tell more than that it agrees with its own medians.
        """
        if self.ratio is not None:
            return [*self.doubts, *([] if self.ratio.doubt is None else [self.ratio.doubt])]
        if self.speedup is None or self.before is None or self.after is None:
            return []
        found = contradiction(self.speedup, self.before.median_ms, self.after.median_ms)
        return [] if found is None else [found]
