"""Says whether what a task reached in INT8 keeps its limit: the metric, and with what confidence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mtlc.evaluation.bootstrap import drawn_pairs, share_kept
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import MetricTotals
from mtlc.evaluation.sample_statistics import SampleStatistics
from mtlc.tasks.task import Limit, TaskSpec

SHARE = 0.75
"""Of what floating point leaves a task to lose, what INT8 may use up on the samples that ranges and operators are
chosen by: on others it loses somewhat more.
"""
SEED = 0
"""Of the draws that say with what confidence a limit is kept."""


@dataclass(frozen=True)
class Reached:
    """A task's metric on some samples, and what each of them adds to it, where that was kept."""

    metric: float
    statistics: SampleStatistics | None = None

    @classmethod
    def of(cls, totals: MetricTotals) -> dict[str, Reached]:
        """By task, of what was counted."""
        statistics = totals.statistics()
        return {task: cls(metric, statistics.get(task)) for task, metric in totals.values().items()}


@dataclass(frozen=True)
class Bound:
    """What a task may lose, against the metric `reference`; `plain` is its metric in floating point.

    `base` is what each sample adds to `reference`; None where it was not kept.
    """

    limit: Limit
    reference: float
    plain: float
    higher_is_better: bool
    base: SampleStatistics | None = field(default=None, compare=False)

    @property
    def worst(self) -> float:
        """The worst metric that the limit allows."""
        return self.limit.bound(self.reference, self.higher_is_better)

    def allows(self, metric: float) -> bool:
        """Whether a metric keeps the limit, whatever the confidence."""
        return self.limit.allows(self.reference, metric, self.higher_is_better)

    def within(self, reached: Reached) -> bool:
        """Whether the limit is kept, with the confidence that it asks for."""
        return self.allows(reached.metric) and self._is_confident(reached)

    def kept(self, reached: Reached) -> bool:
        """Whether the task uses up no more than `SHARE` of what floating point leaves it, with the confidence that its
        limit asks for.
        """
        before = max(0.0, self.used(self.plain))
        return self.used(reached.metric) <= before + SHARE * (1 - before) and self._is_confident(reached)

    def used(self, metric: float) -> float:
        """The loss as a share of what may be lost: above 1 the limit is missed. A NaN uses up everything."""
        lost = self.reference - metric if self.higher_is_better else metric - self.reference
        allowed = abs(self.worst - self.reference)
        if not math.isfinite(metric):
            return math.inf
        if not allowed:
            return 0.0 if self.allows(metric) else math.inf
        return lost / allowed

    def kept_in(self, reached: Reached) -> float | None:
        """The share of draws, 0 to 1, in which the limit is kept; None where what samples add is not known."""
        if self.base is None or reached.statistics is None:
            return None
        pairs = drawn_pairs({"": self.base}, {"": reached.statistics}, [""], SEED)
        return None if pairs is None else share_kept(self.limit, pairs[""], self.higher_is_better)

    def attainable(self, plain: Reached) -> Bound:
        """The same; against floating point, `plain`, where that misses the limit or the confidence that it asks for: no
        precision could keep it.
        """
        return self if self.within(plain) else replace(self, reference=plain.metric, base=plain.statistics)

    def shortfall(self, reached: Reached) -> str:
        """By what the bound is not `kept`."""
        share = self.kept_in(reached)
        if self.limit.confidence is None or share is None or not self.allows(reached.metric):
            return f"{reached.metric:.5g} misses its limit"
        return f"{reached.metric:.5g} keeps its limit of {self.limit} in {100 * share:.1f} % of draws"

    def judged(self, reached: Reached) -> dict[str, Any]:
        """What the report says of the limit: ``bound``, ``within``, and ``kept_in`` where it asks for confidence."""
        found = {"bound": self.worst, "within": self.within(reached)}
        return found if self.limit.confidence is None else found | {"kept_in": self.kept_in(reached)}

    def _is_confident(self, reached: Reached) -> bool:
        return self.limit.confidence is None or (self.kept_in(reached) or 0.0) >= self.limit.confidence


def metrics_of(reached: Mapping[str, Reached]) -> dict[str, float]:
    """The metrics alone."""
    return {task: one.metric for task, one in reached.items()}


def asked_bounds(
    criteria: Criteria, reference: Mapping[str, Reached], plain: Mapping[str, Reached]
) -> dict[str, Bound]:
    """The bound of each task that has a limit, against `reference`, as the job asks for it."""
    return {
        task.name: Bound(
            task.max_drop, reference[task.name].metric, plain[task.name].metric, criteria.higher_is_better[task.name],
            reference[task.name].statistics,
        )
        for task in criteria.tasks
        if task.max_drop is not None
    }  # fmt: skip


def missed_line(task: TaskSpec, asked: Bound | None, plain: Reached, reached: Reached) -> str | None:
    """A line if the INT8 bundle, or already the float one, misses the limit that is `asked` on the validation split."""
    if asked is None or (asked.within(reached) and asked.within(plain)):
        return None
    named, limit = f"task {task.name!r}: {task.metric} is", f"its limit is {asked.worst:.4g}"
    in_float = f"{named} {plain.metric:.4g} in floating point"
    if not asked.allows(plain.metric):
        return f"{in_float}, {limit}: no precision can meet it"
    if not asked.within(plain):
        return f"{in_float} on validation, {_only_in(asked, plain)} (max_drop {asked.limit}): no precision can meet it"
    if asked.allows(reached.metric):
        return (
            f"{named} {reached.metric:.4g} in INT8 on validation, {_only_in(asked, reached)} (max_drop {asked.limit})"
        )
    return (
        f"{named} {reached.metric:.4g} in INT8 on validation, {limit} ({plain.metric:.4g} in floating point, "
        f"max_drop {asked.limit})"
    )


def _only_in(asked: Bound, reached: Reached) -> str:
    return f"which keeps its limit only in {100 * (asked.kept_in(reached) or 0.0):.1f} % of draws from its samples"
