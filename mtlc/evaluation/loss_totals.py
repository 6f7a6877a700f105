"""Adds up the losses of tasks over a data set in which not every sample has a label of every task.

A loss is a mean over the elements of what it is given, so it depends on what stands together. It is therefore worked
out of groups of so many *labelled* samples, whichever batches they came in:

    batches of 4     a . b .    . c d .    e f . .        . has no label
    groups of 4      a b c d    e f

The mean over samples is then the same with and without the samples that have no label. Where all have one, the groups
are the batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtlc.evaluation.collation import padded_boxes
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Batch
from mtlc.tasks.task import TaskSpec


class LossTotals:
    """The sums of the losses of `tasks` over labelled samples, in groups of `size`; `counts` are the samples."""

    def __init__(self, criteria: Criteria, size: int, tasks: Sequence[TaskSpec] | None = None) -> None:
        self._criteria, self._size = criteria, size
        self._tasks = tuple(criteria.tasks if tasks is None else tasks)
        self._waiting: dict[str, list[tuple[Tensor, Tensor]]] = {task.name: [] for task in self._tasks}
        self.sums = {task.name: 0.0 for task in self._tasks}
        self.counts = {task.name: 0 for task in self._tasks}

    def update(self, outputs: Mapping[str, Tensor], batch: Batch) -> None:
        """Add the labelled samples of a batch: in `sums` from when their group is full."""
        for task in self._tasks:
            found = self._criteria.labelled(task, outputs[task.name], batch, "loss")
            if found is None:
                continue
            self.counts[task.name] += len(found[1])
            waiting = self._waiting[task.name]
            if waiting and not _fit(waiting[0], found):
                self._finish(task)
            waiting.append(found)
            while sum(len(target) for _, target in waiting) >= self._size:
                output, target = _joined(waiting)
                waiting.clear()
                self._add(task, output[: self._size], target[: self._size])
                if len(target) > self._size:
                    waiting.append((output[self._size :], target[self._size :]))

    def finish(self) -> None:
        """Add the groups that are not full."""
        for task in self._tasks:
            self._finish(task)

    def shares(self, counts: Mapping[str, int]) -> dict[str, float]:
        """What is in `sums` so far, over `counts` samples by task: of losses that are never negative a lower bound of
        the mean over so many. Not a number counts as infinite, as every comparison with NaN would be false.
        """
        return {
            name: total / max(1, counts[name]) if math.isfinite(total) else math.inf
            for name, total in self.sums.items()
        }

    def means(self) -> dict[str, float]:
        """Each task's mean loss over its labelled samples; NaN without one."""
        self.finish()
        return {name: total / self.counts[name] if self.counts[name] else math.nan for name, total in self.sums.items()}

    def _finish(self, task: TaskSpec) -> None:
        waiting = self._waiting[task.name]
        if waiting:
            group = _joined(waiting)
            waiting.clear()
            self._add(task, *group)

    def _add(self, task: TaskSpec, output: Tensor, target: Tensor) -> None:
        self.sums[task.name] += float(self._criteria.loss_of(task, output, target)) * len(target)


def _fit(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    """Whether outputs and labels of two batches can stand in one; boxes of several M can."""
    if one[0].shape[1:] != other[0].shape[1:]:
        return False
    return one[1].shape[1:] == other[1].shape[1:] or (_are_boxes(one[1]) and _are_boxes(other[1]))


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(parts) == 1:
        return parts[0]
    targets = [target for _, target in parts]
    if len({target.shape[1:] for target in targets}) > 1:
        most = max(target.shape[1] for target in targets)
        targets = [padded_boxes(target, most) for target in targets]
    return torch.cat([output for output, _ in parts]), torch.cat(targets)


def _are_boxes(target: Tensor) -> bool:
    return target.ndim == 3 and target.shape[-1] == 5
