"""Reads and writes what `mtlc search` finds: the widths of a slimmable network for a budget and a preference."""

from __future__ import annotations

from typing import Literal

from mtlc.results.base import Result
from mtlc.results.tasks import IntervalResult


class WidthChange(Result):
    """How far a task's metric is from the widest configuration's, on the same samples."""

    metric: str
    """Name of the metric."""
    unit: str = ""
    """Its unit."""
    higher_is_better: bool
    """Whether larger values are better."""
    widest: float
    """The widest configuration's metric."""
    change: float
    """The metric less `widest`, in its unit."""
    change_interval: IntervalResult | None = None
    """95 % interval of `change`. Left out where `no_interval` says why."""
    no_interval: str | None = None
    """Why nothing is known of how far the change is a matter of chance. Left out where it is known."""


class WidthSearchResult(Result):
    """What `mtlc search` prints with ``--json``.

    The fields from `strategy` on that say "checkpoint" are absent where a bundle was asked: its widths are fixed, and
    nothing is measured.
    """

    of: Literal["bundle", "checkpoint"]
    """What was searched."""
    path: str
    """Where it lies."""
    strategy: str | None = None
    """Checkpoint: the strategy of the search."""
    preference: dict[str, float] | None = None
    """Checkpoint: what each task is worth; the sum is 1."""
    encoder: dict[str, float]
    """Width of every encoder stage: the share of its channels that run."""
    decoders: dict[str, float]
    """Width of every task's decoder: the share of its channels that run."""
    macs: int | None
    """MACs of one sample, counted from shapes."""
    share: float | None
    """`macs` over the widest configuration's."""
    latency_ms: float | None = None
    """Checkpoint: measured latency, in ms, where the budget was in ms; else None."""
    metrics: dict[str, float | None]
    """Each task's metric on held-out data, measured, in the metric's unit."""
    gain: float | None = None
    """Checkpoint: mean relative change of the metrics against the widest, weighted by preference: 0.02 is 2 %
    better.
    """
    changes: dict[str, WidthChange] | None = None
    """Checkpoint: by task, the change against the widest configuration, on the samples that it was chosen by."""
    gain_interval: IntervalResult | None = None
    """Checkpoint: 95 % interval of `gain`, as a share; None where a task that is worth something has no interval."""
    runs: int | None = None
    """Checkpoint: networks that were measured, without the two that the intervals need."""
    seconds: float | None = None
    """Checkpoint: wall-clock time of the search, in seconds."""
    bundle: str | None = None
    """Checkpoint, with ``--out``: the verified bundle of the configuration alone."""
