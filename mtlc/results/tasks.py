"""Describes what a compression did to each task: its metric before and after, its limit, and the mean change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Protocol

from mtlc.results.base import Result

_CLEARLY = 1e-3  # of the constant predictor's metric: rounding and another split's mean differ by as much


class IntervalResult(Result):
    """Where a value lies, by draws of as many samples with replacement, the same draws for both networks."""

    low: float
    """Its lower end."""
    high: float
    """Its upper end."""
    confidence: float
    """The share of draws that lie in it; the others lie in equal parts on both sides."""
    samples: int
    """Labelled samples that were drawn from."""
    draws: int
    """Draws that gave a number."""

    def between(self) -> str:
        """Its ends, as ``-0.1 to +0.2``."""
        return f"{self.low:+.3g} to {self.high:+.3g}"

    def words(self) -> str:
        """The same with what it is, as ``95 % interval -0.1 to +0.2``."""
        return f"{100 * self.confidence:g} % interval {self.between()}"


class LabelledSamples(Result):
    """How many samples of each split have a label of a task."""

    train: int
    """Of the train split."""
    calibration: int
    """Of the calibration split."""
    validation: int
    """Of the validation split."""


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
    """Kind of the output: ``labels``, ``scalar``, ``normals``, ``probability``, ``boxes`` or ``unknown``."""
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
    """Whether the limit was kept, with the confidence that it asks for if it does; None without a limit."""
    samples: LabelledSamples | None = None
    """How many samples have a label of it. Left out in files of earlier versions."""
    change_interval: IntervalResult | None = None
    """95 % interval of the metric's change, `after` less `before`, in its unit; None where `no_interval` says why."""
    no_interval: str | None = None
    """Why nothing is known of how far the change is a matter of chance. Left out where it is known."""
    kept_in: float | None = None
    """The share of draws, 0 to 1, in which the limit is kept; None without a limit or without draws."""
    by_chance: bool | None = None
    """Whether the limit is kept by chance: the interval of the change, as the limit measures it, reaches over the
    limit. None as `kept_in`."""
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
    vs_original_interval: IntervalResult | None = None
    """95 % interval of `vs_original`, in percent; None where no interval of some task's change is known."""
    vs_single_task_interval: IntervalResult | None = None
    """The same of `vs_single_task`, with the baselines taken as they are given."""
    original_vs_single_task_interval: IntervalResult | None = None
    """The same of `original_vs_single_task`."""


class Judged(Protocol):
    """What the results of a task say of its limit and of chance: `TaskResult` and that of ``mtlc verify``."""

    @property
    def metric(self) -> str | None: ...

    @property
    def unit(self) -> str: ...

    @property
    def limit(self) -> str | None: ...

    @property
    def within(self) -> bool | None: ...

    @property
    def change_interval(self) -> IntervalResult | None: ...

    @property
    def no_interval(self) -> str | None: ...

    @property
    def kept_in(self) -> float | None: ...

    @property
    def by_chance(self) -> bool | None: ...


def confidence_doubt(task: Judged) -> str:
    """Why a limit that asks for confidence is not kept with it, though the metric keeps it."""
    if task.kept_in is None:
        return f"with what confidence is not known, as {task.no_interval}"
    return f"only in {100 * task.kept_in:.1f} % of draws from its samples"


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


def chance_warnings(tasks: Mapping[str, TaskResult]) -> list[str]:
    """That limits are kept by chance, or that nothing is known of it, in a line for each such task."""
    lines = (
        chance_warning(name, task, None if task.after is None or task.before is None else task.after - task.before)
        for name, task in tasks.items()
    )
    return [line for line in lines if line is not None]


def chance_warning(name: str, task: Judged, change: float | None, split: str = "validation") -> str | None:
    """That one task, whose metric differs by `change` on the samples of `split`, keeps its limit by chance, or that
    nothing is known of it; None where neither is so.
    """
    interval = task.change_interval
    if task.limit is None or not task.within:
        return None
    if interval is None:
        if task.no_interval is None:
            return None
        return (
            f"task {name!r} keeps its limit of {task.limit}, but by how much of chance is not known: {task.no_interval}"
        )
    if not task.by_chance:
        return None
    unit = f" {task.unit}" if task.unit else ""
    share = "" if task.kept_in is None else f"; {100 * task.kept_in:.0f} % of draws keep it"
    signed = "?" if change is None else f"{change:+.3g}"
    return (
        f"task {name!r} keeps its limit of {task.limit} by chance: {task.metric} changes by {signed}{unit}, "
        f"{interval.words()}, over {interval.samples} labelled {split} samples{share}"
    )


def unlearned_words(who: str, tasks: Iterable[tuple[str, str, str, float | None, float | None]]) -> str:
    """That a network, ``original`` or ``compressed``, has not learned tasks: (name, metric, unit, its metric, the
    constant predictor's).
    """
    shown = (f"{name} ({metric} {value:.4g} against {constant:.4g}{f' {unit}' if unit else ''})"
             for name, metric, unit, value, constant in tasks)  # fmt: skip
    return f"the {who} network is no better than a constant predictor at {', '.join(shown)}"
