"""Computes the loss of anchor-free detectors, with labels assigned to anchor points by SimOTA.

Labels are (N, M, 5): rows x1, y1, x2, y2, class in pixels of the network's input. Rows of class -1 are nothing: a
picture of no object has no others. A picture with a row of the class that is ignored (255, or the task's ``ignore``)
was not labelled, and counts in neither the loss nor the metric. Outputs are (N, A, D), as `mtlc.detection` describes
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mtlc.detection import EXPONENT, Detection
from mtlc.errors import UserError
from mtlc.tasks.labels import ignored_class

_NEVER = 1e8
"""The cost of a point that may not be assigned."""
_FAR = 1e5
"""Added to the cost of a point that is not both in the box and near its centre."""


def detection_of(postprocess: Mapping[str, Any] | None) -> Detection:
    """What the task's ``postprocess`` declares. Raises `UserError` where there is none."""
    if postprocess is None:
        raise UserError('a task with boxes needs postprocess = { kind = "detection", size = [H, W], strides = [...] }')
    return Detection.parse(postprocess)


def simota(
    output: Tensor,
    target: Tensor,
    postprocess: Mapping[str, Any] | None = None,
    radius: float = 2.5,
    candidates: int = 10,
    box_weight: float = 5.0,
    ignore_index: int | None = None,
) -> Tensor:
    """The loss of YOLOX (Ge et al., 2021, section 2.1): boxes, objectness and classes, by assigned point.

    Boxes: `box_weight` times 1 - IoU². Objectness: binary cross-entropy at all points. Classes: the same at assigned
    points, towards the IoU. All three are sums over the batch, divided by the number of assigned points. Without
    objectness the classes are asked at all points, towards the IoU at assigned ones and 0 elsewhere.

    `radius` is that of centre sampling in strides, `candidates` the most points that vote for how many a box gets.
    """
    if radius <= 0 or candidates < 1 or box_weight < 0:
        raise UserError(
            f"simota: radius = {radius}, candidates = {candidates}, box_weight = {box_weight}: "
            "give more than 0, at least 1, and at least 0"
        )
    how = detection_of(postprocess)
    check_boxes(output, target, how, ignore_index)
    labelled = labelled_pictures(output, target, how, ignore_index)
    output, target = output[labelled], target[labelled]
    if not target.shape[1]:  # a row of nothing, for there must be one to point at
        target = target.new_tensor([0.0, 0.0, 0.0, 0.0, -1.0]).expand(len(target), 1, 5)
    boxes, logits = decode(output, how), output[..., how.box_columns :]
    objectness = output[..., 4] if how.objectness else None
    chosen, shares = assign(boxes.detach(), _class_logits(output, how).detach(), target, how, radius, candidates)
    positive = chosen >= 0
    count = positive.sum().clamp(min=1)
    label = target.gather(1, chosen.clamp(min=0)[..., None].expand(-1, -1, 5)).to(output.dtype)
    found = overlap(boxes, label[..., :4])
    box_loss = torch.where(positive, 1 - found * found, torch.zeros_like(found)).sum()
    wanted = functional.one_hot(label[..., 4].long().clamp(min=0), logits.shape[-1]).to(output.dtype)
    wanted = wanted * (shares * positive)[..., None]
    class_loss = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(-1)
    if objectness is None:
        return (box_weight * box_loss + class_loss.sum()) / count
    class_loss = torch.where(positive, class_loss, torch.zeros_like(class_loss))
    object_loss = functional.binary_cross_entropy_with_logits(objectness, positive.to(output.dtype), reduction="sum")
    return (box_weight * box_loss + object_loss + class_loss.sum()) / count


def assign(
    boxes: Tensor, logits: Tensor, target: Tensor, how: Detection, radius: float = 2.5, candidates: int = 10
) -> tuple[Tensor, Tensor]:
    """Which label each point is for: its row (N, A), -1 for none, and the IoU of the point's box with it (N, A).

    SimOTA (YOLOX, section 2.1, "SimOTA"; dynamic k: OTA, Ge et al., CVPR 2021, section 3.3). The cost of a point for a
    label is the cross-entropy of its class plus 3 times -ln IoU, plus a large number unless the point lies in the
    label's box and within `radius` strides of its centre; a point where neither holds is no candidate. A label gets
    the k points of least cost, where k is the sum of its `candidates` largest IoUs, at least 1. A point that several
    labels want goes to the one that it costs least.

    `boxes` are (N, A, 4), `logits` (N, A, classes) of the joint score, `target` (N, M, 5).
    """
    real = target[..., 4] >= 0  # (N, M)
    # Everything is (N, M, A) from here on: labels by points.
    possible, preferred = _near(target, how, radius)
    possible &= real[..., None]
    found = overlap(boxes[:, None], target[:, :, None, :4].to(boxes.dtype))
    found = torch.where(possible, found, torch.zeros_like(found))
    cost = _class_cost(logits, target[..., 4].long().clamp(min=0)) - 3 * (found + 1e-8).log() + _FAR * ~preferred
    cost = torch.where(possible, cost, torch.full_like(cost, _NEVER))
    wanted = found.topk(min(candidates, how.anchors), -1).values.sum(-1).int().clamp(min=1)  # (N, M)
    rank = cost.argsort(dim=-1, stable=True).argsort(dim=-1)
    taken = (rank < wanted[..., None]) & possible
    least = torch.where(taken, cost, torch.full_like(cost, 2 * _NEVER)).min(1)  # over the labels
    chosen = torch.where(taken.any(1), least.indices, torch.full_like(least.indices, -1))
    share = found.gather(1, chosen.clamp(min=0)[:, None])[:, 0]
    return chosen, torch.where(chosen >= 0, share, torch.zeros_like(share))


def decode(output: Tensor, how: Detection) -> Tensor:
    """The boxes (N, A, 4) of an output (N, A, D) in pixels, as `mtlc.box_decoding.decode_boxes` but not cut at the
    border, so that gradients reach all of them.
    """
    points = torch.from_numpy(how.points).to(output)
    at, stride = points[:, :2], points[:, 2:]
    if how.encoding == "distances":
        sides = output[..., :4].clamp(-EXPONENT, EXPONENT).exp() * stride
        return torch.cat([at - sides[..., :2], at + sides[..., 2:]], -1)
    middle = at + output[..., :2] * stride
    half = output[..., 2:4].clamp(-EXPONENT, EXPONENT).exp() * (stride * 0.5)
    return torch.cat([middle - half, middle + half], -1)


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union (...) of boxes (..., 4) and (..., 4) that broadcast; 0 where both are empty."""
    low, high = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    both = (high - low).clamp(min=0).prod(-1)
    areas = (one[..., 2:] - one[..., :2]).prod(-1) + (other[..., 2:] - other[..., :2]).prod(-1)
    return both / (areas - both).clamp(min=1e-9)


def labelled_pictures(output: Tensor, target: Tensor, how: Detection, ignore_index: int | None = None) -> Tensor:
    """(N,): which pictures were labelled, as the module's docstring says."""
    ignored = ignored_class(how.classes(output.shape), ignore_index)
    if ignored is None:
        return torch.ones(len(target), dtype=torch.bool, device=target.device)
    return (target[..., 4] != ignored).all(1)


def check_boxes(output: Tensor, target: Tensor, how: Detection, ignore_index: int | None = None) -> None:
    """An output (N, A, D) fits what is declared, and labels (N, M, 5) are boxes in the picture, or nothing.

    Raises `UserError` naming the row of the first box that is not right.
    """
    classes = how.classes(output.shape)
    if target.ndim != 3 or target.shape[-1] != 5 or len(target) != len(output):
        raise UserError(
            f"expected boxes ({len(output)}, M, 5), rows x1, y1, x2, y2, class, but the target is {tuple(target.shape)}"
        )
    if not target.is_floating_point():
        raise UserError(
            f"expected boxes as floats, but the target is {str(target.dtype).removeprefix('torch.')}: call float()"
        )
    labelled = labelled_pictures(output, target, how, ignore_index)[:, None]
    label, (height, width) = target[..., 4], how.size
    low, high = target[..., :2], target[..., 2:4]
    border = torch.tensor([width, height], dtype=target.dtype, device=target.device)
    real = (label != -1) & labelled
    faults = {
        "is not finite; rows of nothing have class -1": labelled & ~target.isfinite().all(-1),
        f"has a class that is none of 0 to {classes - 1}, nor -1 for nothing": real
        & ((label < 0) | (label >= classes) | (label != label.round())),
        "has no area; give x1 < x2 and y1 < y2": real & (low >= high).any(-1),
        f"leaves the picture of {height} × {width} pixels (H × W); cut it at the border": real
        & ((low < 0).any(-1) | (high > border).any(-1)),
    }
    for what, bad in faults.items():
        if bad.any():
            place = bad.nonzero()[0].tolist()
            row = ", ".join(f"{value:g}" for value in target[place[0], place[1]].tolist())
            raise UserError(f"box {place[1]} ({row}) {what}")


def _near(target: Tensor, how: Detection, radius: float) -> tuple[Tensor, Tensor]:
    """(N, M, A): whether a point lies in a label's box or near its centre, and whether both."""
    points = torch.from_numpy(how.points).to(target)
    stride = points[:, 2:]
    # Cells are judged by their middle, whichever corner the encoding counts from.
    middle = points[:, :2] + (0.0 if how.encoding == "distances" else 0.5) * stride
    low, high = target[..., None, :2], target[..., None, 2:4]
    inside = ((middle > low) & (middle < high)).all(-1)
    near = ((middle - (low + high) / 2).abs() < radius * stride).all(-1)
    return inside | near, inside & near


def _class_logits(output: Tensor, how: Detection) -> Tensor:
    """(N, A, classes): the logits of the joint scores, sigmoid(objectness) · sigmoid(class)."""
    logits = output[..., how.box_columns :]
    if not how.objectness:
        return logits
    joint = functional.logsigmoid(logits) + functional.logsigmoid(output[..., 4:5])
    return joint - torch.log1p(-joint.exp().clamp(max=1 - 1e-6))


def _class_cost(logits: Tensor, label: Tensor) -> Tensor:
    """(N, M, A): the cross-entropy of each point's scores with each label's class, 1 for it and 0 for the others."""
    against_none = functional.softplus(logits).sum(-1)  # (N, A): as if every class were wrong
    right = logits.gather(-1, label[:, None, :].expand(-1, logits.shape[1], -1)).transpose(1, 2)
    return against_none[:, None] - right  # softplus(-x) = softplus(x) - x
