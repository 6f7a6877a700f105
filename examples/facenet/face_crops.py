"""Cuts windows out of a folder of pictures, mostly where MTCNN looks for faces, and labels them by the network itself.

What the original network says about a window and about its mirror image, mirrored back, is averaged. That is a little
better than what it says about the window alone, so its own error against these labels is small and not zero: what
pruning adds has something to be compared with.

Pictures are divided among the splits before windows are cut, so no picture is in two of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mtcnn_networks import SHAPES, FaceNetwork, ProposalNetwork, face_network, proposal_network
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mtlc.errors import UserError, nearest
from mtlc.evaluation.splits import Splits
from mtlc.runtime.pictures import read_image
from mtlc.tasks.metrics import Metric

PREPROCESSING: dict[str, Any] = {"scale": 1 / 128, "mean": [127.5 / 128], "std": [1.0], "color": "RGB"}
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
SMALLEST = 24
"""Pixels of the side of a window in its picture."""
THRESHOLD = 0.7
"""From these odds on, MTCNN takes a window for a face."""
_PROPOSAL = 0.6
"""P-Net's threshold in MTCNN."""
_STEP = 0.709
"""From one scale of P-Net's pyramid to the next, as in MTCNN."""
_LARGEST = 1024
"""Pixels of a picture's longer side for P-Net."""
_BATCH = 256


class FaceCrops(Dataset[Any]):
    """Windows in memory: a sample has `image` (3, S, S) float32 and what the network said, a tensor a task."""

    def __init__(self, pixels: NDArray[np.uint8], labels: dict[str, Tensor]) -> None:
        """`pixels` (n, S, S, 3); `labels` have a first axis of n."""
        self.pixels, self.labels = pixels, labels

    @cached_property
    def identity(self) -> str:
        digest = hashlib.sha256(self.pixels.tobytes())
        for name, value in self.labels.items():
            digest.update(name.encode() + value.numpy().tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.batch([index]).items()}

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The samples at `indices`, stacked."""
        chosen = torch.as_tensor(np.asarray(indices, np.int64))
        return {
            "image": to_input(self.pixels[chosen.numpy()]),
            **{name: value[chosen] for name, value in self.labels.items()},
        }


def face_crops(
    root: str | Path,
    network: str = "onet",
    train: int = 8000,
    val: int = 2000,
    calibration: int = 1000,
    seed: int = 0,
) -> Splits:
    """Splits of so many windows, cut out of the pictures in `root` and the folders below it, at least three pictures.

    The validation split gets the windows of about a fifth of the pictures, calibration those of a tenth, at least one
    picture each. Raises `UserError` for a folder without pictures, and for one that cannot be read.
    """
    if network not in SHAPES:
        raise UserError(f"[data] network = {network!r}: must be one of {', '.join(SHAPES)}{nearest(network, SHAPES)}")
    for name, count in (("train", train), ("val", val), ("calibration", calibration)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise UserError(f"[data] {name} = {count!r}: give a whole number from 1")
    folder = Path(root)
    if not folder.is_dir():
        raise UserError(f"[data] root: {folder} is no folder; put pictures with faces there")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(paths) < 3:
        raise UserError(f"[data] root: {folder} has {len(paths)} pictures; put at least three there, with faces")
    order = np.random.default_rng((seed, 0)).permutation(len(paths))
    held = max(1, len(paths) // 10)
    shown = max(1, len(paths) // 5)
    pictures = {
        "calibration": order[:held],
        "validation": order[held : held + shown],
        "train": order[held + shown :],
    }
    proposer, labeller = proposal_network(), face_network(network)
    made = {}
    for part, (name, count) in enumerate((("train", train), ("calibration", calibration), ("validation", val))):
        chosen = [paths[i] for i in pictures[name]]
        pixels = windows(chosen, count, proposer, labeller, np.random.default_rng((seed, 1 + part)))
        made[name] = FaceCrops(pixels, labels(labeller, pixels))
    return Splits(made["train"], made["calibration"], made["validation"], dict(PREPROCESSING))


def to_input(pixels: NDArray[np.uint8]) -> Tensor:
    """Pixels (n, H, W, 3) as MTCNN's networks take them, (n, 3, H, W)."""
    return (torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() - 127.5) / 128


@torch.no_grad()
def labels(network: FaceNetwork, pixels: NDArray[np.uint8]) -> dict[str, Tensor]:
    """What the network says about each window, averaged with what it says about the mirror image."""
    parts = []
    for start in range(0, len(pixels), _BATCH):
        x = to_input(pixels[start : start + _BATCH])
        straight, turned = network(x), mirrored(network(x.flip(-1)))
        parts.append({task: (straight[task] + turned[task]) / 2 for task in straight})
    return {task: torch.cat([part[task] for part in parts]) for task in parts[0]}


def mirrored(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The outputs for a window that would be the mirror image's: left and right change places."""
    out = dict(outputs)
    left, top, right, low = outputs["box"].unbind(1)
    out["box"] = torch.stack([-right, top, -left, low], 1)
    if "landmarks" in outputs:
        x, y = outputs["landmarks"].view(-1, 2, 5)[:, :, [1, 0, 2, 4, 3]].unbind(1)
        out["landmarks"] = torch.cat([1 - x, y], 1)
    return out


def windows(
    paths: Sequence[Path],
    count: int,
    proposer: ProposalNetwork,
    network: FaceNetwork,
    generator: np.random.Generator,
) -> NDArray[np.uint8]:
    """`count` square windows (count, size, size, 3) of the pictures, of the network's size, about as many of each.

    A third of a picture's are where the network sees a face, a third are other proposals of P-Net's, both moved a
    little; and a third lies anywhere. What a picture has none of goes to the others.
    """
    made = np.empty((count, network.size, network.size, 3), np.uint8)
    shares = np.array_split(np.arange(count), len(paths))
    for path, places in zip(paths, shares, strict=True):
        if not len(places):
            continue
        pixels = read_image(path)
        if min(pixels.shape[:2]) < SMALLEST:
            raise UserError(f"{path}: a picture of {pixels.shape[:2]} pixels; give at least {SMALLEST} each way")
        picture = Image.fromarray(pixels)
        found = proposals(picture, proposer)
        kinds: list[NDArray[np.float64]] = [np.empty((0, 3))]
        if len(found):
            cut = np.stack([_cut(picture, window, network.size) for window in found])
            face = labels(network, cut)["face"][:, 1].numpy() >= THRESHOLD
            kinds += [part for part in (found[face], found[~face]) if len(part)]
        for index, place in enumerate(places):
            turn, kind = divmod(index, len(kinds))
            made[place] = _cut(picture, _window(picture, kinds[kind], turn, generator), network.size)
    return made


def _window(
    picture: Image.Image, found: NDArray[np.float64], turn: int, generator: np.random.Generator
) -> tuple[float, float, float]:
    """One that was found, moved a little, each in its turn; one anywhere if none was."""
    width, height = picture.size
    if len(found):
        x, y, side = found[turn % len(found)]
        side, x, y = (value + side * generator.uniform(-0.15, 0.15) for value in (side, x, y))
    else:
        side = SMALLEST * (min(width, height) / SMALLEST) ** generator.random()
        x, y = generator.random() * (width - side), generator.random() * (height - side)
    return _within(picture, x, y, max(side, SMALLEST))


def _cut(picture: Image.Image, window: Sequence[float], size: int) -> NDArray[np.uint8]:
    x, y, side = window
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX, (x, y, x + side, y + side)))


@torch.no_grad()
def proposals(picture: Image.Image, proposer: ProposalNetwork, most: int = 64) -> NDArray[np.float64]:
    """Windows (n, 3) that P-Net takes for faces, x, y and side in pixels, the surest first, within the picture.

    No two overlap by half.
    """
    found = []
    scale = min(0.6, _LARGEST / max(picture.size))  # 0.6: faces of 20 pixels and more
    while min(picture.size) * scale >= 12:
        small = picture.resize([max(12, round(value * scale)) for value in picture.size], Image.Resampling.BOX)
        odds = proposer(to_input(np.asarray(small)[None]))[0].numpy()
        rows, columns = np.nonzero(odds >= _PROPOSAL)
        found += [(odds[r, c], 2 * c / scale, 2 * r / scale, 12 / scale) for r, c in zip(rows, columns, strict=True)]
        scale *= _STEP
    kept: list[tuple[float, float, float]] = []
    for _, x, y, side in sorted(found, reverse=True)[:2000]:
        if len(kept) == most:
            break
        window = _within(picture, x, y, side)
        if all(_overlap(window, other) < 0.5 for other in kept):
            kept.append(window)
    return np.array(kept, np.float64).reshape(-1, 3)


def _within(picture: Image.Image, x: float, y: float, side: float) -> tuple[float, float, float]:
    """The square, moved into the picture, and made smaller if it is larger than that."""
    width, height = picture.size
    side = min(side, width, height)
    return float(np.clip(x, 0, width - side)), float(np.clip(y, 0, height - side)), float(side)


def _overlap(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    """Intersection over union of two squares."""
    across, down = (min(one[i] + one[2], other[i] + other[2]) - max(one[i], other[i]) for i in (0, 1))
    shared = max(across, 0) * max(down, 0)
    return shared / (one[2] ** 2 + other[2] ** 2 - shared)


class Agreement(Metric):
    """Windows that are taken for a face, or for none, as the labels take them, %."""

    higher_is_better, unit, kind = True, "%", "unknown"

    def __init__(self) -> None:
        self._same = self._count = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        self._same += int(((output[:, 1] >= THRESHOLD) == (target[:, 1] >= THRESHOLD)).sum())
        self._count += len(target)

    def compute(self) -> float:
        return 100 * self._same / self._count if self._count else float("nan")


class MeanOffset(Metric):
    """The mean distance of coordinates from the labels', in % of the window's side."""

    higher_is_better, unit, kind = False, "%", "unknown"

    def __init__(self) -> None:
        self._total, self._count = 0.0, 0

    def update(self, output: Tensor, target: Tensor) -> None:
        self._total += float((output.double() - target.double()).abs().sum())
        self._count += target.numel()

    def compute(self) -> float:
        return 100 * self._total / self._count if self._count else float("nan")
