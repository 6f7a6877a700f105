"""Turns a detector's raw outputs into boxes with numpy, as `mtlc.detection` declares it.

A class's score is its sigmoid, times that of the objectness. Boxes are cut at the picture's border. Non-maximum
suppression is greedy and within a class: a box goes where it overlaps one of a higher score by more than `iou`. Of two
equal scores the one with the lower number of its point is first. Rounding decides where an overlap is the threshold to
the last digit, or two scores are equal: there backends may differ.

Detections are (N, K, 6): rows x1, y1, x2, y2, class, score in pixels of the network's input, best first. Rows of
nothing come last, of class -1 and score 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mtlc.detection import EXPONENT, Detection
from mtlc.errors import UserError


def decode_boxes(output: np.ndarray, how: Detection) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, A, 4) in pixels and scores (N, A, classes) of an output (N, A, D), before any is left out."""
    how.classes(output.shape)
    output = np.asarray(output, np.float32)
    at, stride = how.points[:, :2], how.points[:, 2:]
    if how.encoding == "distances":
        sides = np.exp(np.clip(output[..., :4], -EXPONENT, EXPONENT)) * stride
        low, high = at - sides[..., :2], at + sides[..., 2:]
    else:
        middle = at + output[..., :2] * stride
        half = np.exp(np.clip(output[..., 2:4], -EXPONENT, EXPONENT)) * (stride * np.float32(0.5))
        low, high = middle - half, middle + half
    border = np.array([how.size[1], how.size[0]], np.float32)
    boxes = np.concatenate([np.clip(low, 0, border), np.clip(high, 0, border)], -1)
    scores = _sigmoid(output[..., how.box_columns :])
    if how.objectness:
        scores = scores * _sigmoid(output[..., 4:5])
    return boxes, scores


def detect(output: np.ndarray, how: Detection, *, score: float | None = None) -> np.ndarray:
    """The detections (N, K, 6) of an output (N, A, D); `score` is another threshold than the declared one.

    Raises `UserError` where the output's shape does not fit.
    """
    boxes, scores = decode_boxes(output, how)
    threshold = how.score if score is None else score
    classes = scores.shape[-1]
    found = np.zeros((len(output), how.kept(classes), 6), np.float32)
    found[..., 4] = -1
    for index in range(len(output)):
        kept: list[tuple[float, int, int]] = []
        for label in range(classes):
            for point in suppress_overlaps(boxes[index], scores[index, :, label], threshold, how.iou, how.most):
                kept.append((-float(scores[index, point, label]), label, point))
        for row, (negative, label, point) in enumerate(sorted(kept)[: found.shape[1]]):
            found[index, row] = (*boxes[index, point], label, -negative)
    return found


def suppress_overlaps(boxes: np.ndarray, scores: np.ndarray, score: float, iou: float, most: int) -> list[int]:
    """Greedy non-maximum suppression of boxes (A, 4) with scores (A,): the numbers of those that stay, best first."""
    candidates = np.flatnonzero(scores > np.float32(score))
    order = candidates[np.argsort(-scores[candidates], kind="stable")]
    kept: list[int] = []
    while len(order) and len(kept) < most:
        best, order = int(order[0]), order[1:]
        kept.append(best)
        order = order[overlaps(boxes[best], boxes[order]) <= np.float32(iou)]
    return kept


def overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box (4,) with others (K, 4); 0 where both are empty."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    both = np.maximum(high - low, 0).prod(-1)
    areas = (others[:, 2:] - others[:, :2]).prod(-1) + (box[2:] - box[:2]).prod()
    union = areas - both
    result: np.ndarray = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    return result


def _sigmoid(x: np.ndarray) -> np.ndarray:
    # tanh instead of exp: nothing overflows.
    result: np.ndarray = np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * x))
    return result


def pad_boxes(boxes: Iterable[Sequence[float]], rows: int) -> np.ndarray:
    """Boxes of a picture, rows x1, y1, x2, y2, class, as the label (rows, 5) float32: the rest of class -1.

    Raises `UserError` where there are more boxes than rows.
    """
    given = np.asarray(list(boxes), np.float32).reshape(-1, 5)
    if len(given) > rows:
        raise UserError(f"{len(given)} boxes do not fit into {rows} rows: give more rows")
    padded = np.zeros((rows, 5), np.float32)
    padded[:, 4] = -1
    padded[: len(given)] = given
    return padded
