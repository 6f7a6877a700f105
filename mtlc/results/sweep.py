"""Describes what `mtlc sweep` finds: runs of a grid of jobs with several seeds, and what they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from mtlc.results.base import Result
from mtlc.results.tasks import IntervalResult

SCHEMA = 1


class SweepTask(Result):
    """How a task is scored in all cells."""

    metric: str
    """Name of its metric."""
    unit: str = ""
    """Unit of the metric; empty for a pure number."""
    higher_is_better: bool
    """Whether a larger metric is a better one."""


class SweepCell(Result):
    """One run of the grid."""

    settings: dict[str, Any] = {}
    """What was set over the job, by key, without the seed."""
    seed: int
    """Its seed."""
    state: Literal["waiting", "done", "failed"]
    """``done`` also where the budget or a limit was missed; ``waiting`` where the sweep was stopped before it."""
    error: str | None = None
    """Why it failed, in one line. Left out where it did not."""
    exit_code: int | None = None
    """What `mtlc run` would have ended with: 0, 3 where something was missed, or that of its error."""
    folder: str
    """Its output folder, relative to that of the sweep."""
    earlier: bool = False
    """Whether an earlier call had computed it."""
    seconds: float | None = None
    """Time that its passes took when they ran, in s."""
    metrics: dict[str, float | None] = {}
    """Each task's metric of the compressed network on the validation split, in the metric's unit."""
    before: dict[str, float | None] = {}
    """The same of the original network."""
    delta_m: float | None = None
    """Δm against the original network, in percent; positive is better."""
    delta_m_interval: IntervalResult | None = None
    """95 % interval of `delta_m`, in percent; None where it is not known."""
    macs: float | None = None
    """MACs of one sample, those as routed where there are experts."""
    macs_share: float | None = None
    """`macs` over those of the original network."""
    parameters: int | None = None
    """Parameters."""
    parameters_share: float | None = None
    """`parameters` over those of the original network."""
    latency_ms: float | None = None
    """Median latency, in ms; None where it was not measured. Cells that ran at the same time disturbed each other."""
    missed: list[str] = []
    """A line for the budget and for each limit that was not kept."""


class Spread(Result):
    """A number over the seeds."""

    mean: float
    """Its mean."""
    std: float | None = None
    """Its standard deviation (of a sample: over n − 1); None for one seed."""
    count: int
    """Seeds that it is known of."""


class SweepGroup(Result):
    """The cells that differ in their seed only."""

    settings: dict[str, Any] = {}
    """What was set over the job, by key."""
    seeds: int
    """Its cells that are done."""
    failed: int = 0
    """Its cells that failed."""
    kept: int = 0
    """Its cells that kept the budget and every limit."""
    delta_m: Spread | None = None
    """Δm against the original network, in percent."""
    macs_share: Spread | None = None
    """MACs over those of the original network."""
    parameters_share: Spread | None = None
    """Parameters over those of the original network."""
    latency_ms: Spread | None = None
    """Median latency, in ms."""
    metrics: dict[str, Spread] = {}
    """Each task's metric, in the metric's unit."""


class SweepResult(Result):
    """What ``sweep.json`` holds, and what `mtlc sweep` prints with ``--json``."""

    schema_version: int = Field(default=SCHEMA, alias="schema")
    """Version of this schema."""
    title: str
    """What the page is called."""
    job: str
    """The job file."""
    grid: dict[str, list[Any]] = {}
    """The values of each key that varies."""
    seeds: list[int]
    """The seeds that each combination ran with."""
    threads: int
    """Threads that each cell computed with."""
    tasks: dict[str, SweepTask] = {}
    """How each task is scored; empty while no cell is done."""
    unlearned: list[str] = []
    """Tasks at which the original network of some cell is no better than a constant predictor: Δm says nothing then."""
    cells: list[SweepCell]
    """Every cell, seeds of one combination together."""
    groups: list[SweepGroup]
    """Every combination, over its seeds."""
    best: int | None = None
    """Place in `cells` of the best one: of those that kept the budget and every limit, that of the largest Δm. None
    where none did."""
    versions: dict[str, str] = {}
    """Versions of mtlc and torch."""
    seconds: float
    """Time that this call took, in s."""


def unlearned_line(tasks: Sequence[str]) -> str:
    """What it means that the original network has not learned its tasks, in a line."""
    return (
        f"the original network is no better than a constant predictor at {', '.join(tasks)}: Δm and the best run say "
        "nothing; train it first (mtlc train)"
    )
