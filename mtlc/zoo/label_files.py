"""Reads the label files of NYUD-v2 in the three encodings that are about, and of generated scenes.

Every reader checks that the values fit the encoding: a file of another kind is an error and never becomes wrong labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtlc.errors import UserError
from mtlc.zoo.checked_files import (
    class_numbers,
    load_mat,
    load_npy,
    metres,
    one_channel,
    open_grey,
    open_image,
    unit_vectors,
)
from mtlc.zoo.scenes import MOST_BOXES, drivable

_DEEPEST = 100.0  # metres in a room


@dataclass(frozen=True)
class Encoding:
    """What each folder holds: file suffixes, and whether class 0 of the segmentation is 'ignore' (`shift`) or a
    class.
    """

    name: str
    suffixes: dict[str, str]
    shift: bool = True


ENCODINGS = (
    Encoding("MTL-survey", {"image": ".jpg", "semseg": ".png", "depth": ".npy", "normals": ".npy", "edge": ".npy"}),
    Encoding(
        "astmt", {"image": ".jpg", "semseg": ".mat", "depth": ".mat", "normals": ".jpg", "edge": ".png"}, shift=False
    ),
    Encoding("ATRC", {"image": ".png", "semseg": ".png", "depth": ".npy", "normals": ".png", "edge": ".png"}),
    Encoding("scenes", {"image": ".png", "semseg": ".png", "depth": ".npy", "normals": ".npy", "edge": ".npy"}),
)


def _semseg(path: Path, encoding: Encoding, classes: int) -> NDArray[Any]:
    raw = load_mat(path, "segmentation") if path.suffix == ".mat" else np.asarray(open_image(path))
    top = classes if encoding.shift else classes - 1
    numbers = class_numbers(raw, path, range(top + 1), encoding.name)
    # Where 0 is "unlabelled", it wraps round to 255, "ignore".
    return numbers - np.uint8(1) if encoding.shift else numbers


def _depth(path: Path, encoding: Encoding, classes: int) -> NDArray[Any]:
    return metres(load_mat(path, "depth") if path.suffix == ".mat" else load_npy(path), path, _DEEPEST)


def _normals(path: Path, encoding: Encoding, classes: int) -> NDArray[Any]:
    return unit_vectors(path)


def _edge(path: Path, encoding: Encoding, classes: int) -> NDArray[Any]:
    raw = one_channel(load_npy(path), path) if path.suffix == ".npy" else open_grey(path)
    if path.suffix == ".npy" and raw.size and (raw.max() > 1 or raw.min() < 0):
        raise UserError(f"{path}: values from {raw.min():g} to {raw.max():g}; edges in a .npy are 0 or 1")
    return (raw > (0.5 if path.suffix == ".npy" else 127)).astype(np.uint8)


def _saliency(path: Path, encoding: Encoding, classes: int) -> NDArray[Any]:
    return (open_grey(path) > 127).astype(np.uint8)


def _floor(path: Path, encoding: Encoding, classes: int) -> NDArray[Any]:
    return drivable(_semseg(path, encoding, classes))


def _boxes(path: Path, encoding: Encoding, classes: int) -> NDArray[Any]:
    raw = load_npy(path)
    if raw.shape != (MOST_BOXES, 5) or raw.dtype.kind != "f":
        raise UserError(
            f"{path}: {raw.dtype} {raw.shape}; boxes are float32 ({MOST_BOXES}, 5), rows x1, y1, x2, y2, class"
        )
    return raw.astype(np.float32)


DECODE = {
    "semseg": _semseg,
    "depth": _depth,
    "normals": _normals,
    "edge": _edge,
    "sal": _saliency,
    "floor": _floor,
    "detection": _boxes,
}


def resize_label(
    task: str, label: NDArray[Any], size: tuple[int, int], was: tuple[int, ...] | None = None
) -> NDArray[Any]:
    """A label of a picture of `was` (H, W; None: the label's own) at another size: the nearest pixel of a map
    (H, W[, C]); edges keep the maximum of the pixels that they cover; boxes are scaled, and so is a disparity, which is
    in pixels.
    """
    height, width = label.shape[:2] if was is None else was
    if task == "detection":
        scale = np.array([size[1] / width, size[0] / height] * 2 + [1], np.float32)
        scaled: NDArray[Any] = label * scale
        return scaled
    if task == "edge" and size[0] <= height and size[1] <= width:
        pooled = torch.nn.functional.adaptive_max_pool2d(torch.from_numpy(label.astype(np.float32))[None], size)
        return pooled[0].numpy().astype(label.dtype)
    rows = ((np.arange(size[0]) + 0.5) * height / size[0]).astype(np.intp)
    columns = ((np.arange(size[1]) + 0.5) * width / size[1]).astype(np.intp)
    result: NDArray[Any] = label[rows[:, None], columns]
    return result * np.float32(size[1] / width) if task == "disparity" else result
