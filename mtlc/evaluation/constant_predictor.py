"""Works out what a network that always answers the same would score: the floor that every metric is read against."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Batch, batches
from mtlc.tasks.labels import IGNORED, counted, ignored_class
from mtlc.tasks.task import TaskSpec


def constant_metrics(
    criteria: Criteria,
    seen: Any,
    dataset: Any,
    batch_size: int = 64,
    channels: Mapping[str, int] | None = None,
    limit: int | None = None,
) -> dict[str, float | None]:
    """Metrics on `dataset` of the best predictor that ignores its input: what not learning looks like.

    Class frequencies, the mean of valid values or the mean direction of `seen`; for probabilities the better of the
    base rate and "everywhere". Per channel, not per pixel. None for a task whose metric says nothing of its kind.
    `channels` of the network's outputs by task say how many classes there are; without them as many as there are
    labels, and 255 is one only if there is a larger one. At most `limit` samples of `dataset` are looked at. Only
    labels that are there count; None also where one of the two has none.
    """
    best: dict[str, float | None] = {}
    for task in criteria.tasks:
        if criteria.kinds[task.name] == "boxes":  # no one box is right in every picture
            best[task.name] = None
            continue
        likely = _Likely(criteria.kinds[task.name], (channels or {}).get(task.name), task.ignore)
        for batch in batches(seen, batch_size):
            labels = _labelled(criteria, task, batch, channels)
            if labels is not None:
                likely.update(labels)
        if not likely.seen:  # nothing is known of what is likely
            best[task.name] = None
            continue
        scores = []
        for constant in likely.constants():
            metric = criteria.new_metrics()[task.name]
            for batch in batches(dataset, batch_size, limit):
                target = _labelled(criteria, task, batch, channels)
                if target is None:
                    continue
                space = target.shape[1:] if target.dtype == torch.int64 else target.shape[2:]
                shape = (len(target), len(constant), *space)
                metric.update(constant.view(1, -1, *[1] * len(space)).expand(shape), target)
            score = float(metric.compute())
            scores += [score] if math.isfinite(score) else []
        pick = max if criteria.higher_is_better[task.name] else min
        best[task.name] = pick(scores) if scores else None
    return best


def _labelled(criteria: Criteria, task: TaskSpec, batch: Batch, channels: Mapping[str, int] | None) -> Tensor | None:
    """The labels of those samples that have one; None where none has."""
    if task.target_key not in batch:
        return None
    target = batch[task.target_key]
    # Of an output only the number of classes is asked: where it is not known, 255 may be one.
    classes = (channels or {}).get(task.name, IGNORED + 1)
    found = criteria.labelled(task, torch.empty(0).expand(len(target), classes, 0), batch, "metric")
    return None if found is None else found[1]


class _Likely:
    """What the labels of a task hold, added up batch by batch: how often each class, the sums of values that count."""

    def __init__(self, kind: str, classes: int | None, ignore: int | None) -> None:
        self._kind, self._channels, self._ignore = kind, classes, ignore
        self.seen = False
        self._numbers = torch.zeros(0, dtype=torch.long)  # how often each class number
        self._sums: Tensor | None = None
        self._counts: Tensor | None = None

    def update(self, labels: Tensor) -> None:
        self.seen = True
        if self._kind == "labels" and labels.dtype == torch.int64:
            # A number below 0 that counts raised in the metric, and one that does not is none of the classes.
            found = torch.bincount(labels[labels >= 0])
            self._numbers = _added(self._numbers, found)
            return
        if labels.ndim < 2 or not labels.is_floating_point():
            return
        channels = labels.transpose(0, 1).flatten(1).double()
        if self._kind == "probability":
            counts_in = counted(channels, IGNORED if self._ignore is None else self._ignore)
            sums, counts = torch.where(counts_in, channels, torch.zeros_like(channels)).sum(1), counts_in.sum(1)
        else:
            valid = (channels != 0).any(0) & channels.isfinite().all(0)  # 0 marks a pixel without depth or direction
            sums, counts = channels[:, valid].sum(1), valid.sum().expand(len(channels))
        self._sums = sums if self._sums is None else self._sums + sums
        self._counts = counts if self._counts is None else self._counts + counts

    def constants(self) -> list[Tensor]:
        """Candidates, one value per channel each, in the terms of a network's output (scores, values, logits)."""
        if self._numbers.numel():
            return self._frequencies()
        if self._sums is None or self._counts is None:
            return []
        if self._kind == "probability":
            rate = torch.logit(self._sums / self._counts.clamp(min=1), eps=1e-6).float()
            return [rate, torch.full_like(rate, 20.0)]
        return [(self._sums / self._counts).float()]

    def _frequencies(self) -> list[Tensor]:
        classes = self._channels
        if classes is None:
            most = len(self._numbers) - 1
            classes = most + 1 if most > IGNORED else 0
        counts = self._numbers.clone()
        ignored = ignored_class(classes, self._ignore)
        if ignored is not None and 0 <= ignored < len(counts):
            counts[ignored] = 0
        if not counts.any():
            return []
        last = int(counts.nonzero()[-1]) + 1
        counts = _added(counts[:last], torch.zeros(classes, dtype=torch.long))
        return [(counts.double() / counts.sum()).clamp_min(1e-12).log().float()]


def _added(one: Tensor, other: Tensor) -> Tensor:
    """The sum of counts of which one may end sooner."""
    result = torch.zeros(max(len(one), len(other)), dtype=torch.long)
    result[: len(one)] += one
    result[: len(other)] += other
    return result
