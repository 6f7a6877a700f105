"""Measures the tasks of two bundles on the same samples, and says how far a difference is a matter of chance."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch

from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import Evaluation, MetricTotals
from mtlc.tasks.task import TaskSpec
from mtlc.workflows.chances import Draws, change_chances

Arrays = Mapping[str, np.ndarray]


class MeasuredPair:
    """The metrics of `criteria` of a first bundle and of its reference on samples of `split`, with what each adds."""

    def __init__(self, criteria: Criteria, split: str, seed: int) -> None:
        self._criteria, self._split, self._seed = criteria, split, seed
        self._totals = MetricTotals(criteria, keep=True), MetricTotals(criteria, keep=True)

    def update(self, first: Arrays, reference: Arrays, batch: Any) -> None:
        """Count the outputs of both for one batch."""
        for totals, found in zip(self._totals, (first, reference), strict=True):
            totals.update({name: torch.from_numpy(array) for name, array in found.items()}, batch)

    def found(self) -> dict[str, dict[str, Any]]:
        """By task, the fields of `ComparedTask` from ``metric`` on. A metric that is not a number is None."""
        first, reference = self._evaluations
        draws = Draws((reference, first), [task.name for task in self._criteria.tasks], self._seed)
        return {task.name: self._of(task, draws) for task in self._criteria.tasks}

    def keeps(self, name: str) -> bool:
        """Whether a task keeps its limit, whatever the confidence that this asks for."""
        first, reference = self._evaluations
        limit = next(task.max_drop for task in self._criteria.tasks if task.name == name)
        better = self._criteria.higher_is_better[name]
        return limit is None or limit.allows(reference.metrics[name], first.metrics[name], better)

    def _of(self, task: TaskSpec, draws: Draws) -> dict[str, Any]:
        name, limit, better = task.name, task.max_drop, self._criteria.higher_is_better[task.name]
        value, base = (evaluation.metrics[name] for evaluation in self._evaluations)
        known = bool(np.isfinite(value) and np.isfinite(base))
        chances = change_chances(task, draws, better, self._split)
        return {
            "metric": task.metric,
            "unit": self._criteria.units[name],
            "higher_is_better": better,
            "value": value if np.isfinite(value) else None,
            "reference": base if np.isfinite(base) else None,
            "difference": value - base if known else None,
            "limit": None if limit is None else str(limit),
            "within": None if limit is None else known and self.keeps(name) and chances.confident,
            **chances.found,
        }

    @cached_property
    def _evaluations(self) -> tuple[Evaluation, Evaluation]:
        first, reference = self._totals
        return first.evaluation(), reference.evaluation()
