"""Describes what a compression did to each task: its metric before and after, its limit, and the mean change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from mtlc.results.base import Result

_CLEARLY = 1e-3  # of the constant predictor's metric: rounding and another split's mean differ by as much


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

    def learned(self, after: bool = False) -> bool:
        """Whether the original network, or the one `after` compression, is better at it than a constant predictor."""
        return beats_constant(self.after if after else self.before, self.constant, self.higher_is_better)


class DeltaM(Result):
    """The mean over the tasks of the relative change of their metrics, in percent; positive is better."""

    vs_original: float | None = None
    """The compressed network against the original one."""
    vs_single_task: float | None = None
    """The compressed network against one network per task; None without ``[report] baselines``."""
    original_vs_single_task: float | None = None
    """The original network against one network per task."""


def beats_constant(value: float | None, constant: float | None, higher_is_better: bool) -> bool:
    """Whether a metric is better than that of the best predictor that answers every sample alike, by a thousandth of it
    at least. True also where one of them is not known: nothing is said then.
    """
    if value is None or constant is None or not (math.isfinite(value) and math.isfinite(constant)):
        return True
    gain = value - constant if higher_is_better else constant - value
    return gain > _CLEARLY * abs(constant)


def unlearned_warnings(tasks: Mapping[str, TaskResult]) -> list[str]:
    """That a network is no better than a constant predictor at some tasks, and what follows from it; a line for the
    original, a line for the compressed one at tasks that the original had learned.
    """
    before = [(n, t.metric, t.unit, t.before, t.constant) for n, t in tasks.items() if not t.learned()]
    after = [
        (n, t.metric, t.unit, t.after, t.constant)
        for n, t in tasks.items()
        if t.learned() and not t.learned(after=True)
    ]
    lines = []
    if before:
        lines.append(f"{unlearned_words('original', before)}; changes against it and Δm say nothing")
    if after:
        lines.append(f"{unlearned_words('compressed', after)}; it has lost what the original had learned")
    return lines


def unlearned_words(who: str, tasks: Iterable[tuple[str, str, str, float | None, float | None]]) -> str:
    """That a network, ``original`` or ``compressed``, has not learned tasks: (name, metric, unit, its metric, the
    constant predictor's).
    """
    shown = (f"{name} ({metric} {value:.4g} against {constant:.4g}{f' {unit}' if unit else ''})"
             for name, metric, unit, value, constant in tasks)  # fmt: skip
    return f"the {who} network is no better than a constant predictor at {', '.join(shown)}"
