"""Checks which shapes of output and label go together, and tells which pixels count, for losses and metrics alike."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlc.errors import UserError

IGNORED = 255
"""The label of elements that count neither as right nor as wrong, where a task does not name another."""


def ignored_class(classes: int, ignore_index: int | None = None) -> int | None:
    """The class number that is left out where the output has `classes` channels; None where there is none.

    That is `ignore_index` if it is given. Otherwise it is 255, unless 255 is one of the classes.
    """
    if ignore_index is not None:
        return ignore_index
    return IGNORED if classes <= IGNORED else None


def counted(target: Tensor, ignored: int | None) -> Tensor:
    """Where a label counts, bool of the shape of `target`: it is not `ignored`, nor NaN."""
    there = ~torch.isnan(target)
    if ignored is None:
        return there
    # A uint8 is compared as it is: beside it torch would wrap -1 round to 255.
    return there & ((target if target.is_floating_point() else target.long()) != ignored)


def check_classes(output: Tensor, target: Tensor) -> None:
    """Logits (N, C, ...) fit integer classes (N, ...)."""
    expected = (*output.shape[:1], *output.shape[2:])
    if output.ndim < 2 or tuple(target.shape) != expected:
        wanted = expected if output.ndim >= 2 else "(N, ...)"
        raise UserError(
            f"expected logits (N, C, ...) and classes (N, ...): output {tuple(output.shape)} "
            f"goes with target {wanted}, not {tuple(target.shape)}"
        )
    if target.dtype.is_floating_point or target.dtype.is_complex:
        raise UserError(
            f"expected class numbers as integers, but the target is {str(target.dtype).removeprefix('torch.')}"
        )


def check_range(truth: Tensor, classes: int, ignored: int | None) -> None:
    """The labels that count are class numbers from 0 to `classes` - 1."""
    if not truth.numel():
        return
    least, most = int(truth.min()), int(truth.max())
    if least < 0 or most >= classes:
        other = "" if ignored is None else f" or {ignored}"
        raise UserError(
            f"expected classes 0 to {classes - 1}{other}, but the target holds {most if most >= classes else least}"
        )


def check_binary(target: Tensor, ignored: int) -> None:
    """Labels are shares from 0 to 1, `ignored` or NaN: anything else would count as one of the two without a word."""
    values = target[counted(target, ignored)]
    bad = (values < 0) | (values > 1)
    if bad.any():
        raise UserError(f"expected labels from 0 to 1 or {ignored}, but the target holds {float(values[bad][0]):g}")


def check_finite(target: Tensor) -> None:
    """No label is infinite. NaN is no label."""
    bad = torch.isinf(target)
    if bad.any():
        raise UserError(f"expected finite labels, but the target holds {float(target[bad][0]):g}")


def check_same(output: Tensor, target: Tensor) -> None:
    """Both have one shape: broadcasting would hide a mistake."""
    if output.shape != target.shape:
        raise UserError(
            "expected output and target of one shape, "
            f"but output is {tuple(output.shape)} and target {tuple(target.shape)}"
        )


def check_normals(output: Tensor, target: Tensor) -> None:
    """Both are (N, 3, ...)."""
    if output.ndim < 2 or output.shape[1] != 3 or output.shape != target.shape:
        raise UserError(
            "expected normals (N, 3, H, W) as output and target, "
            f"but output is {tuple(output.shape)} and target {tuple(target.shape)}"
        )


def valid_depth(target: Tensor) -> Tensor:
    """Where a depth map holds a measurement."""
    return torch.isfinite(target) & (target != 0)


def valid_normals(target: Tensor) -> Tensor:
    """(N, ...): where a map of normals (N, 3, ...) holds a direction."""
    return (target != 0).any(dim=1) & torch.isfinite(target).all(dim=1)
