"""Describes what a compression did to each task: its metric before and after, its limit, and the mean change."""

from __future__ import annotations

from mtlc.results.base import Result


class LossPair(Result):
    """A task's loss on the validation split, in the unit of the loss."""

    before: float | None = None
    """Of the original network."""
    after: float | None = None
    """Of the compressed network."""


class DetailPair(Result):
    """What a metric tells besides its value, on the validation split: by name, in the metric's unit."""

    before: dict[str, float | None] = {}
    """Of the original network."""
    after: dict[str, float | None] = {}
    """Of the compressed network."""


class TaskResult(Result):
    """What the compression did to one task. All metrics are of the validation split."""

    metric: str
    """Name of the metric."""
    unit: str = ""
    """Unit of the metric, such as ``%`` or ``m``; empty for a pure number."""
    kind: str = "unknown"
    """Kind of the output: ``labels``, ``scalar``, ``normals``, ``probability`` or ``unknown``."""
    higher_is_better: bool
    """Whether a larger metric is a better one."""
    before: float | None
    """The metric of the original network."""
    after: float | None
    """The metric of the compressed network."""
    limit: str | None = None
    """How much the task may lose, as the job says it: ``1%`` of the metric before, or ``0.02`` in its unit."""
    bound: float | None = None
    """The worst metric that the limit allows."""
    within: bool | None = None
    """Whether the limit was kept; None without a limit."""
    single_task: float | None = None
    """The metric of a network of its own for this task, from ``[report] baselines``."""
    constant: float | None = None
    """The metric of the best predictor that answers every sample alike."""
    loss: LossPair | None = None
    """The task's loss before and after."""
    details: DetailPair | None = None
    """What the metric tells besides, such as the share of pixels under 11.25°."""


class DeltaM(Result):
    """The mean over the tasks of the relative change of their metrics, in percent; positive is better."""

    vs_original: float | None = None
    """The compressed network against the original one."""
    vs_single_task: float | None = None
    """The compressed network against one network per task; None without ``[report] baselines``."""
    original_vs_single_task: float | None = None
    """The original network against one network per task."""
