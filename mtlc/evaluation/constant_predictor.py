"""Works out what a network that always answers the same would score: the floor that every metric is read against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import batches
from mtlc.tasks.labels import IGNORED, counted, ignored_class


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
    labels, and 255 is one only if there is a larger one. At most `limit` samples of `dataset` are looked at.
    """
    best: dict[str, float | None] = {}
    for task in criteria.tasks:
        labels = torch.cat([batch[task.target_key] for batch in batches(seen, batch_size)])
        scores = []
        classes = (channels or {}).get(task.name)
        for constant in _constants(criteria.kinds[task.name], labels, classes, task.ignore):
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


def _constants(kind: str, labels: Tensor, classes: int | None, ignore: int | None) -> list[Tensor]:
    """Candidates, one value per channel each, in the terms of a network's output (class scores, values, logits)."""
    if kind == "labels" and labels.dtype == torch.int64:
        if not labels.numel():
            return []
        if classes is None:
            most = int(labels.max())
            classes = most + 1 if most > IGNORED else 0
        kept = labels[counted(labels, ignored_class(classes, ignore))]
        counts = torch.bincount(kept.flatten(), minlength=classes)
        return [(counts.double() / counts.sum()).clamp_min(1e-12).log().float()] if kept.numel() else []
    if labels.ndim < 2 or not labels.is_floating_point():
        return []
    channels = labels.transpose(0, 1).flatten(1).double()
    if kind == "probability":
        counts_in = counted(channels, IGNORED if ignore is None else ignore)
        rate = torch.logit((channels * counts_in).sum(1) / counts_in.sum(1).clamp(min=1), eps=1e-6).float()
        return [rate, torch.full_like(rate, 20.0)]
    valid = (channels != 0).any(0)  # 0 marks a pixel without depth or direction
    return [channels[:, valid].mean(1).float()]
