"""Draws what a bundle's tasks say of a picture, in the size of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mtlc.results.infer import Classified, Detected
from mtlc.runtime import Session, picture
from mtlc.runtime.bundle.manifest import TaskInfo
from mtlc.runtime.picture_fit import Fit, resized
from mtlc.runtime.pictures import draw_boxes

_KEPT = 0.9
"""How much of the range of colours a frame has from the one before it: or a video would flicker."""
_GAP = 4
"""Pixels between pictures beside each other."""
_SCALARS = ("scalar", "unknown")


@dataclass(frozen=True)
class Drawn:
    """What a task says of a picture. `picture` (H, W, 3) is None where its output is none; `rows` (K, 6) are boxes."""

    picture: np.ndarray | None
    detections: list[Detected] | None = None
    classified: Classified | None = None
    rows: np.ndarray = field(default_factory=lambda: np.zeros((0, 6), np.float32))


def draw(
    session: Session,
    outputs: Mapping[str, np.ndarray],
    image: np.ndarray,
    ranges: dict[str, tuple[float, float]] | None = None,
) -> dict[str, Drawn]:
    """What `session.run` gave for the picture `image` (H, W, 3), by task. With `ranges`, which is changed, colours of
    numbers follow those of the frames before.
    """
    fit = session.fit(image.shape[:2])
    decoded = session.decode(outputs)
    return {name: _drawn(session.tasks[name], array, image, fit, ranges) for name, array in decoded.items()}


def _drawn(
    task: TaskInfo, output: np.ndarray, image: np.ndarray, fit: Fit, ranges: dict[str, tuple[float, float]] | None
) -> Drawn:
    if task.postprocess is not None:
        rows = fit.back_boxes(output[0])
        return Drawn(draw_boxes(image, rows), _detections(task, rows), None, rows)
    array = output[0]
    if array.ndim != 3 or array.size == 0:
        classes = array.ndim == 1 and len(array) > 1 and task.kind == "labels"
        return Drawn(None, None, _classified(task, int(array.argmax())) if classes else None)
    if task.kind == "labels":
        classified = fit.back_classes(array) if len(array) > 1 else np.rint(fit.back(array)[0]).astype(np.int64)
        return Drawn(picture("labels", classified[None]))
    shown = fit.back(array)
    low, high = (None, None) if ranges is None else _range(task, shown, ranges)
    return Drawn(picture(task.kind, shown, low, high))


def _range(
    task: TaskInfo, shown: np.ndarray, ranges: dict[str, tuple[float, float]]
) -> tuple[float, float] | tuple[None, None]:
    """From where to where colours go, between the range of this frame and of those before."""
    finite = shown[0][np.isfinite(shown[0])] if task.kind in _SCALARS else shown[:0]
    if not finite.size:
        return ranges.get(task.name, (None, None))
    low, high = (float(one) for one in np.percentile(finite, (2, 98)))
    if task.name in ranges:
        before = ranges[task.name]
        low, high = _KEPT * before[0] + (1 - _KEPT) * low, _KEPT * before[1] + (1 - _KEPT) * high
    ranges[task.name] = low, high
    return low, high


def _classified(task: TaskInfo, label: int) -> Classified:
    name = None if task.classes is None or label >= len(task.classes) else task.classes[label]
    return Classified(label=label, **({} if name is None else {"name": name}))


def _detections(task: TaskInfo, rows: np.ndarray) -> list[Detected]:
    return [
        Detected(
            box=[round(float(value), 2) for value in row[:4]],
            label=int(row[4]),
            name=task.classes[int(row[4])] if task.classes is not None else None,
            score=round(float(row[5]), 4),
        )
        for row in rows[rows[:, 4] >= 0]
    ]


def beside_each_other(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (H, W, 3) in one row, all as high as the first, with a white gap between them."""
    height = pictures[0].shape[0]
    row: list[np.ndarray] = []
    for one in pictures:
        if one.shape[0] != height:
            size = (height, max(1, round(one.shape[1] * height / one.shape[0])))
            one = np.rint(resized(one, size)).astype(np.uint8)
        row += [one, np.full((height, _GAP, 3), 255, np.uint8)]
    return np.concatenate(row[:-1], axis=1)
