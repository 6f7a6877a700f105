"""Measures each task's loss and metric of a network on a split."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria, no_labels
from mtlc.evaluation.splits import Batch, batches
from mtlc.program.program import Program


@dataclass(frozen=True)
class Evaluation:
    """Losses and metrics by task; `details` holds what a metric tells besides (shares under 11.25°, for instance)."""

    losses: dict[str, float]
    metrics: dict[str, float]
    details: dict[str, dict[str, float]]


class MetricTotals:
    """The metrics of `tasks` (None: all) of `criteria`, fed batch by batch."""

    def __init__(self, criteria: Criteria, tasks: Collection[str] | None = None) -> None:
        self._criteria = criteria
        self._tasks = [task for task in criteria.tasks if tasks is None or task.name in tasks]
        self._metrics = criteria.new_metrics()

    def update(self, outputs: Mapping[str, Tensor], batch: Batch) -> None:
        """Count one batch's outputs by task with its labels. Raises `UserError` naming the task that does not fit."""
        for task in self._tasks:
            if task.target_key not in batch:
                raise no_labels(task, batch)
            with self._criteria.metric_errors(task):
                self._metrics[task.name].update(outputs[task.name], batch[task.target_key])

    def values(self) -> dict[str, float]:
        """Each task's metric of all that was counted; NaN if that is nothing."""
        found = {}
        for task in self._tasks:
            with self._criteria.metric_errors(task):
                found[task.name] = float(self._metrics[task.name].compute())
        return found

    def details(self) -> dict[str, dict[str, float]]:
        """What else the metrics tell, by task."""
        found = {}
        for task in self._tasks:
            with self._criteria.metric_errors(task):
                found[task.name] = dict(self._metrics[task.name].details())
        return found


def evaluate(
    run: Program | Callable[[Batch], Mapping[str, Tensor]],
    criteria: Criteria,
    dataset: Any,
    batch_size: int = 64,
    limit: int | None = None,
) -> Evaluation:
    """Losses (batch-size-weighted means) and metrics over a split, in eval mode without gradients.

    Raises `UserError` naming the task whose loss is not a number.
    """
    forward = run.outputs_on_data if isinstance(run, Program) else run
    training = run.module.training if isinstance(run, Program) else False
    if isinstance(run, Program):
        run.module.eval()
    metrics, totals, count = MetricTotals(criteria), dict.fromkeys((t.name for t in criteria.tasks), 0.0), 0
    try:
        with torch.inference_mode():
            for batch in batches(dataset, batch_size, limit):
                outputs = forward(batch)
                size = len(next(iter(batch.values())))
                for name, loss in criteria.losses(outputs, batch).items():
                    totals[name] += float(loss) * size
                metrics.update(outputs, batch)
                count += size
    finally:
        if isinstance(run, Program):
            run.module.train(training)
    losses = {name: total / count for name, total in totals.items()}
    for name, value in losses.items():
        if not math.isfinite(value):
            raise UserError(
                f"task {name!r}: its loss on the data is {value}; look for NaN in the labels or the weights"
            )
    return Evaluation(losses, metrics.values(), metrics.details())
