"""Works out what a network that always answers the same would score: the floor that every metric is read against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import batches
from mtlc.tasks.labels import IGNORED


def constant_metrics(
    criteria: Criteria, seen: Any, dataset: Any, batch_size: int = 64, limit: int | None = None
) -> dict[str, float | None]:
    """Metrics on `dataset` of the best predictor that ignores its input: what not learning looks like.

    Class frequencies, the mean of valid values or the mean direction of `seen`; for probabilities the better of the
    base rate and "everywhere". Per channel, not per pixel. None for a task whose metric says nothing of its kind. At
    most `limit` samples of `dataset` are looked at.
    """
    best: dict[str, float | None] = {}
    for task in criteria.tasks:
        labels = torch.cat([batch[task.target_key] for batch in batches(seen, batch_size)])
        scores = []
        for constant in _constants(criteria.kinds[task.name], labels):
            metric = criteria.new_metrics()[task.name]
            for batch in batches(dataset, batch_size, limit):
                target = batch[task.target_key]
                space = target.shape[1:] if target.dtype == torch.int64 else target.shape[2:]
                shape = (len(target), len(constant), *space)
                metric.update(constant.view(1, -1, *[1] * len(space)).expand(shape), target)
            scores.append(float(metric.compute()))
        pick = max if criteria.higher_is_better[task.name] else min
        best[task.name] = pick(scores) if scores else None
    return best


def _constants(kind: str, labels: Tensor) -> list[Tensor]:
    """Candidates, one value per channel each, in the terms of a network's output (class scores, values, logits)."""
    if kind == "labels" and labels.dtype == torch.int64:
        counts = torch.bincount(labels[labels != IGNORED].flatten())
        return [(counts.double() / counts.sum()).clamp_min(1e-12).log().float()]
    if labels.ndim < 2 or not labels.is_floating_point():
        return []
    channels = labels.transpose(0, 1).flatten(1).double()
    if kind == "probability":
        rate = torch.logit(channels.mean(1), eps=1e-6).float()
        return [rate, torch.full_like(rate, 20.0)]
    valid = (channels != 0).any(0)  # 0 marks a pixel without depth or direction
    return [channels[:, valid].mean(1).float()]
