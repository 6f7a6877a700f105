"""Computes the losses of dense and plain tasks, each a mean over the batch's valid elements.

A loss is a function ``loss(output, target, **settings) -> scalar``. A batch without a valid element gives 0, with a
gradient of 0, and never NaN; a picture without a box is valid, and teaches a detector what is none. Every loss checks
the shapes first and says in one line what it expected.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from mtlc.entry_points import added_names, find_addition
from mtlc.errors import UserError, nearest
from mtlc.references import resolve
from mtlc.tasks.foreign_criteria import as_loss
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
from mtlc.tasks.simota import simota

Loss = Callable[..., Tensor]


def cross_entropy(
    output: Tensor, target: Tensor, ignore_index: int | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Softmax cross-entropy in nats: logits (N, C, ...) against class numbers (N, ...), `ignore_index` left out.

    Without an `ignore_index`, 255 is left out where C is at most 255.
    """
    check_classes(output, target)
    ignored = ignored_class(output.shape[1], ignore_index)
    valid = counted(target, ignored)
    check_range(target[valid], output.shape[1], ignored)
    total = functional.cross_entropy(
        output,
        target.long(),
        ignore_index=-1 if ignored is None else ignored,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return total / valid.sum().clamp(min=1)


def l1(output: Tensor, target: Tensor) -> Tensor:
    """Mean |output - target| for depth, in its unit; a target of 0, infinity or NaN is invalid and left out."""
    check_same(output, target)
    valid = valid_depth(target)
    return _masked_mean((output - target).abs(), valid)


def normals_l1(output: Tensor, target: Tensor) -> Tensor:
    """Mean |n - n*| over the three components, (N, 3, H, W), with the output scaled to unit length; targets of length
    0 are left out.
    """
    check_normals(output, target)
    difference = functional.normalize(output, dim=1, eps=1e-6) - target
    return _masked_mean(difference.abs().mean(dim=1), valid_normals(target))


def balanced_bce(output: Tensor, target: Tensor, ignore_index: int = IGNORED) -> Tensor:
    """Binary cross-entropy of logits, the two classes balanced within the batch; `ignore_index` is left out.

    Each positive weighs (negatives / all) and each negative (positives / all), as in holistically nested edge
    detection (Xie and Tu, ICCV 2015, eq. 2), and the sum is divided by the number of pixels. A batch of a single
    class has nothing to balance and gives 0.
    """
    check_same(output, target)
    valid = counted(target, ignore_index)
    positive = (target > 0.5) & valid
    count = valid.sum().clamp(min=1)
    share = positive.sum() / count
    weight = torch.where(positive, 1 - share, share) * valid
    return (weight * _bce(output, positive)).sum() / count


def edge_bce(output: Tensor, target: Tensor, positive_weight: float = 0.95, ignore_index: int = IGNORED) -> Tensor:
    """Binary cross-entropy of logits: edges weigh `positive_weight`, other pixels the rest of 1; targets of
    `ignore_index` are left out.
    """
    if not 0 <= positive_weight <= 1:
        raise UserError(f"positive_weight = {positive_weight}: must lie between 0 and 1")
    check_same(output, target)
    valid = counted(target, ignore_index)
    positive = (target > 0.5) & valid
    weight = torch.where(positive, positive_weight, 1 - positive_weight)
    return _masked_mean(weight * _bce(output, positive), valid)


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over all elements; both of one shape. A target of NaN is left out."""
    check_same(output, target)
    valid = counted(target, None)
    # The gradient of a square is 2 · difference · 0 where it is masked, which is NaN for a difference of NaN.
    return _masked_mean((output - torch.where(valid, target, torch.zeros_like(target))) ** 2, valid)


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "l1": l1,
    "normals_l1": normals_l1,
    "balanced_bce": balanced_bce,
    "edge_bce": edge_bce,
    "mse": mse,
    "simota": simota,
}


GROUP = "mtlc.losses"
"""The entry points under which packages add losses."""


def resolve_loss(name: str) -> Loss:
    """The loss of that name, ours or an installed package's, or the callable that ``module:callable`` names."""
    if ":" in name:
        return as_loss(resolve(name, "loss"))
    added = find_addition(GROUP, name, LOSSES)
    if added is not None:
        loss: Loss = added.load()
        if not callable(loss):
            raise added.refused(f"it is a {type(loss).__name__}, not a function loss(output, target)")
        return loss
    if name not in LOSSES:
        known = nearest(name, [*LOSSES, *added_names(GROUP)])
        raise UserError(f"unknown loss {name!r}{known}; or give module:callable")
    return LOSSES[name]


def _bce(output: Tensor, positive: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(output, positive.to(output.dtype), reduction="none")


def _masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """The mean of the valid values. `where`, not a product: NaN times 0 is NaN."""
    return torch.where(valid, values, torch.zeros_like(values)).sum() / valid.sum().clamp(min=1)
