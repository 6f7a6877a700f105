"""Checks which shapes of output and label go together, and tells which pixels count, for losses and metrics alike."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlc.errors import UserError

IGNORED = 255
"""The label of pixels that count neither as right nor as wrong."""


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
