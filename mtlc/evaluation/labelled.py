"""Tells which samples of a batch have a label of a task, and which elements of a label count.

A sample has none where the data set gives none (`mtlc.evaluation.collation`), and where no element of what it gives
counts: pixels that are all ignored, NaN, or whatever the task's loss or metric takes for invalid. Losses and metrics of
the user's own are asked about labelled samples alone; of these, an element counts unless it is NaN or ``ignore``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from mtlc.evaluation.collation import has_label
from mtlc.evaluation.splits import Batch
from mtlc.tasks.labels import IGNORED, counted, ignored_class, valid_depth, valid_normals
from mtlc.tasks.simota import detection_of, labelled_pictures
from mtlc.tasks.task import TaskSpec

LossOrMetric = Literal["loss", "metric"]
Rule = Callable[[TaskSpec, int | None, Tensor, Tensor], Tensor]
"""Of a task, the label that it ignores (None: none is named), an output and a label: bool (N, …), where it counts."""


def _of_classes(task: TaskSpec, ignored: int | None, output: Tensor, target: Tensor) -> Tensor:
    return counted(target, ignored_class(output.shape[1], ignored))


def _of_shares(task: TaskSpec, ignored: int | None, output: Tensor, target: Tensor) -> Tensor:
    return counted(target, IGNORED if ignored is None else ignored)


def _of_depths(task: TaskSpec, ignored: int | None, output: Tensor, target: Tensor) -> Tensor:
    return valid_depth(target)


def _of_directions(task: TaskSpec, ignored: int | None, output: Tensor, target: Tensor) -> Tensor:
    return valid_normals(target)


def _of_boxes(task: TaskSpec, ignored: int | None, output: Tensor, target: Tensor) -> Tensor:
    return labelled_pictures(output, target, detection_of(task.postprocess), ignored)


def _of_others(task: TaskSpec, ignored: int | None, output: Tensor, target: Tensor) -> Tensor:
    return counted(target, ignored)


_RULES: dict[str, tuple[Rule, int]] = {
    **dict.fromkeys(("cross_entropy", "miou", "accuracy"), (_of_classes, 1)),
    **dict.fromkeys(("balanced_bce", "edge_bce", "max_jaccard", "odsf"), (_of_shares, 1)),
    **dict.fromkeys(("l1", "rmse"), (_of_depths, 1)),
    **dict.fromkeys(("normals_l1", "mean_angle"), (_of_directions, 2)),
    **dict.fromkeys(("simota", "map", "map_50"), (_of_boxes, 3)),
}
"""By loss and metric of mtlc, which elements count, and the fewest dimensions of a label that can be asked."""
_OTHERS = (_of_others, 1)
_APART = 8
"""Columns between those that are looked at first."""


def counting(task: TaskSpec, output: Tensor, target: Tensor, of: LossOrMetric) -> Tensor | None:
    """Bool (N, …): which elements of labels count in the task's loss or metric, whose output is (N, …) or (1, …).

    None where the shapes are such that nothing can be said.
    """
    name, settings = (task.loss, task.loss_args) if of == "loss" else (task.metric, task.metric_args)
    rule, dimensions = _RULES.get(name, _OTHERS)
    if target.ndim < dimensions or output.ndim < 2 <= target.ndim or (rule is _of_classes and output.ndim < 2):
        return None
    if rule is _of_boxes and target.shape[-1] != 5:
        return None
    return rule(task, settings.get("ignore_index") if task.ignore is None else task.ignore, output, target)


def _any_counts(task: TaskSpec, output: Tensor, target: Tensor, of: LossOrMetric) -> Tensor | None:
    """(N,) bool: whether some element of each label counts."""
    elements = counting(task, output, target, of)
    return None if elements is None else elements.reshape(len(target), -1).any(1)


def labelled_rows(task: TaskSpec, output: Tensor, batch: Batch, of: LossOrMetric) -> Tensor | None:
    """(N,) bool: which samples of a batch have a label that counts in the task's loss or metric; None where all have.

    The batch has the task's target.
    """
    target, there = batch[task.target_key], has_label(batch, task.target_key)
    rows = there
    if target.ndim and target.numel():  # without elements none could count: a picture without boxes is a label
        # A part of the pixels tells it of most samples, and all need to be looked at only where it does not.
        part = target[..., ::_APART] if target.ndim > 2 and target.shape[-1] > 2 * _APART else target
        known = _any_counts(task, output, part, of)
        if known is not None and part is not target and not bool(known.all()):
            known = _any_counts(task, output, target, of)
        if known is not None:
            rows = known if there is None else there & known
    return None if rows is None or bool(rows.all()) else rows
