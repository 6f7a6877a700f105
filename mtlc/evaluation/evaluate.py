"""Measures each task's loss and metric of a network on a split."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria, no_labels, none_labelled
from mtlc.evaluation.labelled import labelled_rows
from mtlc.evaluation.loss_totals import LossTotals
from mtlc.evaluation.sample_statistics import KeptStatistics, SampleStatistics
from mtlc.evaluation.splits import Batch, batches
from mtlc.program.placement import CPU, moved, placed
from mtlc.program.program import Program
from mtlc.tasks.metric import can_be_resampled


@dataclass(frozen=True)
class Evaluation:
    """Losses and metrics by task; `details` holds what a metric tells besides (shares under 11.25°, for instance).

    Each is of the samples that have a label of the task, of which `labelled` says how many there are. `statistics` is
    what they add to the metric, where it was kept and the metric tells.
    """

    losses: dict[str, float]
    metrics: dict[str, float]
    details: dict[str, dict[str, float]]
    labelled: dict[str, int] = field(default_factory=dict)
    statistics: dict[str, SampleStatistics] = field(default_factory=dict)


class MetricTotals:
    """The metrics of `tasks` (None: all) of `criteria`, fed batch by batch.

    With `keep` what each sample adds is kept of all tasks; without, of those whose limit asks for confidence.
    """

    def __init__(self, criteria: Criteria, tasks: Collection[str] | None = None, keep: bool = False) -> None:
        self._criteria = criteria
        self._seen = 0
        self._tasks = [task for task in criteria.tasks if tasks is None or task.name in tasks]
        self._metrics = criteria.new_metrics()
        self.counts = {task.name: 0 for task in self._tasks}
        self._kept = {
            task.name: KeptStatistics(self._metrics[task.name], partial(criteria.new_metric, task))
            for task in self._tasks
            if (keep or (task.max_drop is not None and task.max_drop.confidence is not None))
            and can_be_resampled(self._metrics[task.name])
        }

    def update(self, outputs: Mapping[str, Tensor], batch: Batch) -> None:
        """Count one batch's outputs by task with its labels. Raises `UserError` naming the task that does not fit.

        A metric is given the samples that have a label, and is not asked where none has.
        """
        for task in self._tasks:
            found = self._criteria.labelled(task, outputs[task.name], batch, "metric")
            if found is None:
                continue
            self.counts[task.name] += len(found[1])
            with self._criteria.metric_errors(task):
                self._metrics[task.name].update(*found)
                if task.name in self._kept:
                    rows = labelled_rows(task, outputs[task.name], batch, "metric")
                    places = np.arange(len(found[1])) if rows is None else rows.nonzero()[:, 0].cpu().numpy()
                    self._kept[task.name].add(self._seen + places, *found)
        self._seen += len(next(iter(batch.values())))

    def values(self) -> dict[str, float]:
        """Each task's metric of all that was counted; NaN if that is nothing."""
        found = {}
        for task in self._tasks:
            with self._criteria.metric_errors(task):
                found[task.name] = float(self._metrics[task.name].compute()) if self.counts[task.name] else math.nan
        return found

    def statistics(self) -> dict[str, SampleStatistics]:
        """What each sample adds to the metric, by task, where it was kept; positions count the samples seen."""
        return {name: kept.statistics() for name, kept in self._kept.items() if self.counts[name]}

    def details(self) -> dict[str, dict[str, float]]:
        """What else the metrics tell, by task."""
        found = {}
        for task in self._tasks:
            with self._criteria.metric_errors(task):
                found[task.name] = dict(self._metrics[task.name].details()) if self.counts[task.name] else {}
        return found

    def evaluation(self, losses: Mapping[str, float] | None = None) -> Evaluation:
        """All of it, with `losses` that were found elsewhere."""
        return Evaluation(dict(losses or {}), self.values(), self.details(), self.counts, self.statistics())


def evaluate(
    run: Program | Callable[[Batch], Mapping[str, Tensor]],
    criteria: Criteria,
    dataset: Any,
    batch_size: int = 64,
    limit: int | None = None,
    *,
    need_labels: bool = True,
    keep: bool = False,
) -> Evaluation:
    """Losses (means over labelled samples, `mtlc.evaluation.loss_totals`) and metrics over a split, in eval mode
    without gradients. With `keep`, what each sample adds to the metrics too.

    Raises `UserError` naming the task whose loss is not a number, and the task that no sample has a label of; without
    `need_labels` loss and metric of that are NaN.
    """
    forward = run.outputs_on_data if isinstance(run, Program) else run
    training = run.module.training if isinstance(run, Program) else False
    if isinstance(run, Program):
        run.module.eval()
    losses, metrics, count, keys = LossTotals(criteria, batch_size), MetricTotals(criteria, keep=keep), 0, set[str]()
    try:
        with placed(*([run.module] if isinstance(run, Program) else [])), torch.inference_mode():
            for batch in batches(dataset, batch_size, limit):
                outputs = moved(forward(batch), CPU)  # labels are there, and metrics may be the user's
                losses.update(outputs, batch)
                metrics.update(outputs, batch)
                count += len(next(iter(batch.values())))
                keys.update(batch)
            found = losses.means()
    finally:
        if isinstance(run, Program):
            run.module.train(training)
    for task in criteria.tasks:
        if losses.counts[task.name]:
            if not math.isfinite(found[task.name]):
                raise UserError(
                    f"task {task.name!r}: its loss on the data is {found[task.name]}; "
                    "look for NaN in the labels or the weights"
                )
        elif need_labels and task.target_key not in keys:
            raise no_labels(task, keys)
        elif need_labels:
            raise none_labelled(task, f"the {count} samples that are looked at")
    return metrics.evaluation(found)
