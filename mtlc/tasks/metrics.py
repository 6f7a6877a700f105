"""Measures dense and plain tasks by metrics that are accumulated over a data set batch by batch, and lists all metrics.

Each is a `mtlc.tasks.metric.Metric`. Sums are kept in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mtlc.entry_points import added_names, find_addition
from mtlc.errors import UserError, nearest, one_line
from mtlc.references import resolve
from mtlc.tasks.average_precision import MeanAveragePrecision, MeanAveragePrecision50
from mtlc.tasks.foreign_criteria import as_metric, as_metric_maker
from mtlc.tasks.labels import (
    IGNORED,
    check_classes,
    check_normals,
    check_range,
    check_same,
    counted,
    ignored_class,
    valid_depth,
    valid_normals,
)
from mtlc.tasks.metric import Kind, Metric

__all__ = ["METRICS", "Kind", "Metric", "metric_maker", "resolve_metric"]


class MeanIoU(Metric):
    """Mean intersection over union, %, from true and false positives and false negatives of the whole data set.

    (N, C, ...) logits against (N, ...) classes; labels of `ignore_index` are left out, without one those of 255 where
    C is at most 255. A class that neither the labels nor the predictions hold is left out of the mean, and so is the
    class `ignore_index`; one that is only predicted counts as 0.
    """

    higher_is_better, unit, kind = True, "%", "labels"

    def __init__(self, ignore_index: int | None = None) -> None:
        self._ignore = ignore_index
        self._confusion = np.zeros((0, 0), np.int64)  # rows: labels; columns: predictions

    def update(self, output: Tensor, target: Tensor) -> None:
        classes, truth, guess = _classes(output, target, self._ignore)
        if not self._confusion.size:
            self._confusion = np.zeros((classes, classes), np.int64)
        if len(self._confusion) != classes:
            raise UserError(f"expected {len(self._confusion)} classes as before, but the output has {classes}")
        pairs = torch.bincount(truth * classes + guess, minlength=classes * classes)
        self._confusion += pairs.view(classes, classes).cpu().numpy()

    def compute(self) -> float:
        shares = self._shares()
        return float(100 * np.nanmean(shares)) if np.isfinite(shares).any() else math.nan

    def details(self) -> dict[str, float]:
        return {
            f"class_{index}": float(100 * share) for index, share in enumerate(self._shares()) if np.isfinite(share)
        }

    def sums(self) -> np.ndarray:
        """Of each class: right, labelled, predicted."""
        return np.concatenate([np.diag(self._confusion), self._confusion.sum(1), self._confusion.sum(0)]).astype(float)

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        right, labelled, predicted = np.split(sums, 3, axis=-1)
        union = labelled + predicted - right
        shares: np.ndarray = np.divide(right, union, out=np.zeros(right.shape), where=union > 0)
        known = union > 0
        if self._ignore is not None and 0 <= self._ignore < right.shape[-1]:
            known[..., self._ignore] = False
        result: np.ndarray = 100 * _ratio((shares * known).sum(-1), known.sum(-1))
        return result

    def _shares(self) -> np.ndarray:
        right = np.diag(self._confusion).astype(float)
        union = self._confusion.sum(0) + self._confusion.sum(1) - right
        shares: np.ndarray = np.divide(right, union, out=np.full(right.shape, np.nan), where=union > 0)
        if self._ignore is not None and 0 <= self._ignore < len(shares):
            shares[self._ignore] = np.nan
        return shares


class Accuracy(Metric):
    """The share of elements whose largest logit is that of their class, %.

    Labels of `ignore_index` are left out, without one those of 255 where there are at most 255 classes.
    """

    higher_is_better, unit, kind = True, "%", "labels"

    def __init__(self, ignore_index: int | None = None) -> None:
        self._ignore = ignore_index
        self._right = self._count = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        _, truth, guess = _classes(output, target, self._ignore)
        self._right += int((truth == guess).sum())
        self._count += truth.numel()

    def compute(self) -> float:
        return 100 * self._right / self._count if self._count else math.nan

    def sums(self) -> np.ndarray:
        return np.array([self._right, self._count], float)

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        return 100 * _ratio(sums[..., 0], sums[..., 1])


class MeanSquaredError(Metric):
    """Mean squared error over all elements; a target of NaN is invalid."""

    higher_is_better, unit, kind = False, "", "scalar"

    def __init__(self) -> None:
        self._total, self._count = 0.0, 0

    def update(self, output: Tensor, target: Tensor) -> None:
        check_same(output, target)
        valid = counted(target, None)
        squares = (output.double() - target.double()) ** 2
        self._total += float(torch.where(valid, squares, torch.zeros_like(squares)).sum())
        self._count += int(valid.sum())

    def compute(self) -> float:
        return self._total / self._count if self._count else math.nan

    def sums(self) -> np.ndarray:
        return np.array([self._total, self._count], float)

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        return _ratio(sums[..., 0], sums[..., 1])


class RootMeanSquaredError(Metric):
    """Root of the mean squared error pooled over all valid pixels of the data set, metres; a depth of 0 is invalid."""

    higher_is_better, unit, kind = False, "m", "scalar"

    def __init__(self) -> None:
        self._total, self._count = 0.0, 0

    def update(self, output: Tensor, target: Tensor) -> None:
        check_same(output, target)
        valid = valid_depth(target)
        self._total += float(((output[valid].double() - target[valid].double()) ** 2).sum())
        self._count += int(valid.sum())

    def compute(self) -> float:
        return math.sqrt(self._total / self._count) if self._count else math.nan

    def sums(self) -> np.ndarray:
        return np.array([self._total, self._count], float)

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        root: np.ndarray = np.sqrt(_ratio(sums[..., 0], sums[..., 1]))
        return root


class MeanAngle(Metric):
    """Mean angle between normals (N, 3, ...), degrees, over all valid pixels; outputs of any length, targets of
    length 0 invalid.

    `details` gives the shares, %, under 11.25, 22.5 and 30 degrees.
    """

    higher_is_better, unit, kind = False, "°", "normals"
    limits = (11.25, 22.5, 30.0)

    def __init__(self) -> None:
        self._total, self._count = 0.0, 0
        self._under = [0] * len(self.limits)

    def update(self, output: Tensor, target: Tensor) -> None:
        check_normals(output, target)
        valid = valid_normals(target)
        guess, truth = (functional.normalize(x.movedim(1, -1)[valid].double(), dim=-1) for x in (output, target))
        # atan2, because acos loses half the digits near 0 and 180 degrees.
        angle = torch.rad2deg(torch.atan2(torch.linalg.cross(guess, truth).norm(dim=-1), (guess * truth).sum(-1)))
        self._total += float(angle.sum())
        self._count += angle.numel()
        for index, limit in enumerate(self.limits):
            self._under[index] += int((angle < limit).sum())

    def compute(self) -> float:
        return self._total / self._count if self._count else math.nan

    def sums(self) -> np.ndarray:
        return np.array([self._total, self._count], float)

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        return _ratio(sums[..., 0], sums[..., 1])

    def details(self) -> dict[str, float]:
        if not self._count:
            return {}
        return {f"under_{limit:g}": 100 * n / self._count for limit, n in zip(self.limits, self._under, strict=True)}


class MaxJaccard(Metric):
    """Saliency, %: the Jaccard index of an image, averaged over images, at the best of 15 thresholds from .2 to .9.

    Output: logits of the target's shape (N, ...). Labels of `ignore_index` are left out. An image in which both the
    mask and the prediction are empty counts 1; one in which no label counts is left out.
    """

    higher_is_better, unit, kind = True, "%", "probability"
    thresholds = np.linspace(0.2, 0.9, 15)

    def __init__(self, ignore_index: int = IGNORED) -> None:
        self._ignore = ignore_index
        self._total, self._count = np.zeros(len(self.thresholds)), 0

    def update(self, output: Tensor, target: Tensor) -> None:
        check_same(output, target)
        valid = counted(target, self._ignore).flatten(1)
        truth = (target > 0.5).flatten(1) & valid
        probability = torch.sigmoid(output.float()).flatten(1)
        known = valid.any(1)
        for index, threshold in enumerate(self.thresholds):
            guess = (probability > threshold) & valid
            both, either = (guess & truth).sum(1).double(), (guess | truth).sum(1).double()
            share = torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both))
            self._total[index] += float(share[known].sum())
        self._count += int(known.sum())

    def compute(self) -> float:
        return float(100 * self._total.max() / self._count) if self._count else math.nan

    def details(self) -> dict[str, float]:
        return {"threshold": float(self.thresholds[self._total.argmax()])} if self._count else {}

    def sums(self) -> np.ndarray:
        return np.append(self._total, self._count)

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        return 100 * _ratio(sums[..., :-1].max(-1), sums[..., -1])


class OptimalDatasetF(Metric):
    """Edges, %: the F-measure of the whole data set at the one best threshold (odsF), with a tolerance in position.

    Logits (N, 1, H, W) or (N, H, W). The map of probabilities is thinned by suppressing pixels below a neighbour
    across the edge (`thin`), then cut at `thresholds` values .01 to .99. A predicted pixel is right if an edge pixel
    lies within `tolerance` × the image's diagonal, an edge pixel is found if a predicted one does. This is the usual
    approximation of the one-to-one assignment of the Berkeley benchmark: a line that is predicted twice within the
    tolerance is not counted as wrong. What is predicted at pixels of `ignore_index` and of NaN counts neither way.
    On small images the usual tolerances reach no neighbour (.011 of the diagonal of 64 × 64 is 0.996 pixels); .016
    reaches the eight next pixels there.
    """

    higher_is_better, unit, kind = True, "%", "probability"

    def __init__(
        self, tolerance: float = 0.011, thresholds: int = 99, thin: bool = True, ignore_index: int = IGNORED
    ) -> None:
        if not 0 <= tolerance < 1 or thresholds < 1:
            raise UserError(f"odsf: tolerance = {tolerance}, thresholds = {thresholds}: give 0 to 1, and at least 1")
        self.tolerance, self.thin, self._ignore = tolerance, thin, ignore_index
        self.thresholds = np.linspace(0.01, 0.99, thresholds) if thresholds > 1 else np.array([0.5])
        # At each threshold: pixels predicted, and of them right; edge pixels found. And all edge pixels.
        self._predicted, self._right, self._found = np.zeros((3, thresholds), np.int64)
        self._edges = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        check_same(output, target)
        if target.ndim not in (3, 4) or (target.ndim == 4 and target.shape[1] != 1):
            raise UserError(
                f"expected edges (N, 1, H, W) or (N, H, W), but output and target are {tuple(target.shape)}"
            )
        height, width = target.shape[-2:]
        probability = torch.sigmoid(output.float()).view(-1, 1, height, width)
        valid = counted(target, self._ignore).view(-1, 1, height, width)
        truth = (target > 0.5).view(-1, 1, height, width) & valid
        if self.thin:
            probability = suppress(probability)
        probability = torch.where(valid, probability, torch.zeros_like(probability))  # under every threshold
        radius = self.tolerance * math.hypot(height, width)
        # Instead of dilating 99 binary maps: an edge pixel is found at a threshold if the largest probability in
        # reach is.
        reachable = dilate(probability, radius)
        near_edge = dilate(truth.float(), radius) > 0
        self._predicted += self._above(probability)
        self._right += self._above(probability[near_edge])
        self._found += self._above(reachable[truth])
        self._edges += int(truth.sum())

    def compute(self) -> float:
        return float(100 * self._curve()[2].max()) if self._edges else math.nan

    def details(self) -> dict[str, float]:
        if not self._edges:
            return {}
        precision, recall, f = self._curve()
        best = int(f.argmax())
        return {
            "threshold": float(self.thresholds[best]),
            "precision": float(100 * precision[best]),
            "recall": float(100 * recall[best]),
        }

    def sums(self) -> np.ndarray:
        return np.concatenate([self._predicted, self._right, self._found, [self._edges]]).astype(float)

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        (predicted, right, found), edges = np.split(sums[..., :-1], 3, axis=-1), sums[..., -1:]
        best = 100 * _f_measure(right / np.maximum(predicted, 1), found / np.maximum(edges, 1)).max(-1)
        return np.where(edges[..., 0] > 0, best, np.nan)

    def _above(self, values: Tensor) -> np.ndarray:
        """(T,): how many values reach each threshold."""
        limits = torch.as_tensor(self.thresholds, dtype=values.dtype, device=values.device)
        passed = torch.bucketize(values.flatten(), limits, right=True)  # how many thresholds each value reaches
        count = torch.bincount(passed, minlength=len(limits) + 1).cpu().numpy()
        return count[::-1].cumsum()[::-1][1:]

    def _curve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Precision, recall and F at each threshold, 0..1."""
        precision = self._right / np.maximum(self._predicted, 1)
        recall = self._found / max(self._edges, 1)
        return precision, recall, _f_measure(precision, recall)


def _f_measure(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    result: np.ndarray = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return result


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """`total` / `count`, NaN where `count` is 0."""
    result: np.ndarray = np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
    return result


def suppress(probability: Tensor) -> Tensor:
    """Thin a map of edge probabilities (N, 1, H, W): 0 wherever a neighbour across the edge is larger.

    The edge's direction comes from the second derivatives of the smoothed map: across a ridge it bends most. The
    direction is rounded to one of the four that a pixel's neighbours lie in.
    """
    tent = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0], device=probability.device) / 9
    padded = functional.pad(probability, (3, 3, 3, 3), mode="replicate")
    smooth = functional.conv2d(functional.conv2d(padded, tent.view(1, 1, 1, 5)), tent.view(1, 1, 5, 1))
    middle = smooth[:, :, 1:-1, 1:-1]
    across = smooth[:, :, 1:-1, 2:] + smooth[:, :, 1:-1, :-2] - 2 * middle  # ∂²/∂x²
    down = smooth[:, :, 2:, 1:-1] + smooth[:, :, :-2, 1:-1] - 2 * middle  # ∂²/∂y²
    mixed = (smooth[:, :, 2:, 2:] + smooth[:, :, :-2, :-2] - smooth[:, :, 2:, :-2] - smooth[:, :, :-2, 2:]) / 4
    # The Hessian's axes lie at θ with tan 2θ = 2·mixed/(across - down). The one that bends most, whichever way: on a
    # ridge it bends down, at its foot up.
    way = torch.where(across + down > 0, 1.0, -1.0)
    angle = 0.5 * torch.atan2(way * 2 * mixed, way * (across - down))
    sector = torch.round(angle / (math.pi / 4)).long() % 4
    height, width = probability.shape[-2:]
    edge = functional.pad(probability, (1, 1, 1, 1))
    keep = torch.zeros_like(probability, dtype=torch.bool)
    for index, (dx, dy) in enumerate(((1, 0), (1, 1), (0, 1), (-1, 1))):
        ahead = edge[:, :, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        behind = edge[:, :, 1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
        keep |= (sector == index) & (probability >= ahead) & (probability >= behind)
    return probability * keep


def dilate(values: Tensor, radius: float) -> Tensor:
    """The maximum of non-negative values (N, 1, H, W) over the disc of `radius` pixels about each pixel."""
    height = values.shape[-2]
    out = values
    for dy in range(-int(radius), int(radius) + 1):
        reach = int(math.sqrt(radius * radius - dy * dy))
        row = functional.max_pool2d(values, (1, 2 * reach + 1), 1, (0, reach)) if reach else values
        shifted = functional.pad(row, (0, 0, max(dy, 0), max(-dy, 0)))
        out = torch.maximum(out, shifted[:, :, :height] if dy >= 0 else shifted[:, :, -height:])
    return out


METRICS: dict[str, Callable[..., Metric]] = {
    "miou": MeanIoU,
    "accuracy": Accuracy,
    "rmse": RootMeanSquaredError,
    "mse": MeanSquaredError,
    "mean_angle": MeanAngle,
    "max_jaccard": MaxJaccard,
    "odsf": OptimalDatasetF,
    "map": MeanAveragePrecision,
    "map_50": MeanAveragePrecision50,
}


GROUP = "mtlc.metrics"
"""The entry points under which packages add metrics."""


def resolve_metric(name: str, **settings: Any) -> Any:
    """A fresh metric, called with `settings`: ours or an installed package's by name, or from ``module:callable``."""
    make = metric_maker(name)
    try:
        metric = make(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"metric = {name!r} does not take {settings}: {one_line(error)}") from error
    metric = as_metric(metric, name)
    for attribute in ("higher_is_better", "unit", "kind", "update", "compute", "details"):
        if not hasattr(metric, attribute):
            raise UserError(f"metric = {name!r} has no {attribute!r}: derive it from mtlc.tasks.metrics.Metric")
    if metric.kind not in get_args(Kind):
        raise UserError(f"metric = {name!r} is of kind {metric.kind!r}: {', '.join(get_args(Kind))}")
    return metric


def metric_maker(name: str) -> Callable[..., Any]:
    """What makes the metric of that name."""
    if ":" in name:
        return as_metric_maker(resolve(name, "metric"))
    added = find_addition(GROUP, name, METRICS)
    if added is not None:
        make: Callable[..., Any] = added.load()
        if not callable(make):
            raise added.refused(f"it is a {type(make).__name__}, not a class derived from mtlc.tasks.metrics.Metric")
        return make
    if name not in METRICS:
        known = nearest(name, [*METRICS, *added_names(GROUP)])
        raise UserError(f"unknown metric {name!r}{known}; or give module:callable")
    return METRICS[name]


def _classes(output: Tensor, target: Tensor, ignore_index: int | None) -> tuple[int, Tensor, Tensor]:
    """The number of classes, and the labels and predictions of the elements that count, flat."""
    check_classes(output, target)
    classes = output.shape[1]
    ignored = ignored_class(classes, ignore_index)
    valid = counted(target, ignored)
    truth = target[valid].long()
    check_range(truth, classes, ignored)
    return classes, truth, output.argmax(dim=1)[valid]
