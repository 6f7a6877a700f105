"""Describes what ``mtlc compare`` found: two bundles side by side, A and B."""

from __future__ import annotations

from typing import Any

from mtlc.results.base import Result
from mtlc.results.latency import Memory
from mtlc.results.profile import Latencies
from mtlc.results.verify import OutputDifference


class PassNamed(Result):
    """A pass that made the network."""

    name: str
    """Its name."""
    config: dict[str, Any]
    """Its settings, which are the pass's own; empty where only the bundle is known."""


class BundleSide(Result):
    """What one side is, without its figures."""

    path: str
    """The bundle or folder that was given."""
    bundle: str
    """The bundle."""
    results: str | None
    """The run's results; None for a bundle alone."""
    programs: int
    """How many programs it has."""
    configurations: list[str]
    """Names of its configurations."""
    device: str | None
    """The device that it was made for; None if for any."""
    passes: list[PassNamed]
    """The passes that made it."""
    versions: dict[str, str]
    """Versions of what made it."""
    network: str
    """The network's factory."""


class SideMetric(Result):
    """One side's metric of a task."""

    metric: str
    """Name of the metric."""
    unit: str
    """Its unit."""
    higher_is_better: bool | None
    """Whether larger values are better; None where nothing is known."""
    before: float | None
    """Of the original network; None where nothing is known."""
    after: float | None
    """Of the bundle; None where nothing is known."""


class TaskPair(Result):
    """A task on both sides; None where a side does not have it."""

    A: SideMetric | None
    """On side A."""
    B: SideMetric | None
    """On side B."""
    change: float | None
    """How much better B's metric is than A's, relative; None if they are not both known and alike."""


class SideCost(Result):
    """What one side costs, counted from its files."""

    kind: str
    """How the figures came about: ``modelled``."""
    macs: int | None
    """MACs of one sample; None where they cannot be counted."""
    parameters: int | None
    """Parameters; None where they cannot be counted."""
    bytes: int
    """Size of the files, in bytes."""


class CostPair(Result):
    """Both costs."""

    A: SideCost
    """On side A."""
    B: SideCost
    """On side B."""


class TurnLatencies(Latencies):
    """Times of both sides."""

    in_turns: bool
    """Whether they ran in turns on the same inputs, or one after the other."""


class MemoryPair(Result):
    """Memory and start of both sides."""

    A: Memory
    """On side A."""
    B: Memory
    """On side B."""


class LayerCost(Result):
    """A layer on one side."""

    macs: int | float | None
    """MACs of one sample; None where they are not counted."""
    ms: float | None
    """Its time, in ms; None where it took none."""


class LayerPair(Result):
    """A layer on both sides; None where a side does not have it."""

    name: str
    """Module path."""
    A: LayerCost | None
    """On side A."""
    B: LayerCost | None
    """On side B."""


class ManifestDifference(Result):
    """What the two manifests say differently."""

    what: str
    """What it is of: an input, a task, the whole."""
    a: str | None
    """A's value; None where it has none."""
    b: str | None
    """B's value; None where it has none."""


class Comparison(Result):
    """Two bundles side by side."""

    kind: str
    """Always ``comparison``."""
    A: BundleSide
    """The first."""
    B: BundleSide
    """The second."""
    tasks: dict[str, TaskPair]
    """Metrics by task."""
    cost: CostPair
    """What they cost, counted."""
    latency: TurnLatencies
    """How long they take, measured."""
    memory: MemoryPair
    """Memory and start, measured."""
    layers: list[LayerPair]
    """MACs and times by layer."""
    agreement: dict[str, OutputDifference] | None
    """How far B's outputs are from A's, by task; None where they cannot be compared."""
    agreement_inputs: str | None
    """What the outputs were compared on: ``random``, or the job."""
    differs: list[ManifestDifference]
    """What the manifests say differently."""
    notes: list[str]
    """What cannot be compared, and why."""
