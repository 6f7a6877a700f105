"""Keeps data sets of dense prediction in memory as compact arrays, slices batches from them, and augments them.

Augmentation keeps labels true: a mirrored image has mirrored normals, a magnified one is nearer.

A sample is a dict of tensors: `image` (3, H, W) float32, normalised; `semseg` (H, W) int64, 255 ignored; `depth` (1,
H, W) float32, metres, 0 invalid; `normals` (3, H, W) float32 unit vectors, x to the right, 0 invalid; `edge` and
`sal` (1, H, W) float32, 0 or 1.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESSING: dict[str, Any] = {
    "scale": 1 / 255,
    "mean": list(MEAN),
    "std": list(STD),
    "color": "RGB",
    "layout": "NCHW",
}


class DenseTasks(Dataset[Any], ABC):
    """A map-style data set that keeps its samples as compact arrays, if `cache_bytes` hold them all, from the first
    use on.

    A subclass gives `read` and `identity`. All samples have one size if they are to be batched.
    """

    def __init__(self, length: int, classes: Sequence[str], cache_bytes: int = 2 << 30, zoom: float = 1.0) -> None:
        self.classes = tuple(classes)
        self.preprocessing = dict(PREPROCESSING)
        self.cache_bytes = cache_bytes
        self.zoom = zoom
        self._length = length
        self._arrays: dict[str, NDArray[Any]] | None = None
        self._cacheable: bool | None = None

    @abstractmethod
    def read(self, index: int) -> dict[str, NDArray[Any]]:
        """One sample: image uint8 (H, W, 3), semseg uint8 (H, W), depth float32 (H, W), normals float32 (H, W, 3),
        edge and sal uint8 (H, W).
        """

    @property
    @abstractmethod
    def identity(self) -> str:
        """A short hash of what the samples are, for the keys of caches."""

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return {key: value[0] for key, value in self.batch([index % len(self)]).items()}

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The samples at `indices`, stacked."""
        arrays = self._load()
        if arrays is not None:
            chosen = np.asarray(indices, np.intp)
            return to_tensors({key: array[chosen] for key, array in arrays.items()})
        samples = [self.read(int(index)) for index in indices]
        return to_tensors({key: np.stack([sample[key] for sample in samples]) for key in samples[0]})

    def augment(self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """A random mirror image of each sample with odds of one half; with `zoom` > 1, also a random magnification up
        to it.
        """
        count = len(batch["image"])
        out = flip(batch, torch.rand(count, generator=generator) < 0.5)
        if self.zoom > 1:
            scale, x, y = torch.rand(3, count, generator=generator)
            out = magnify(out, 1 + scale * (self.zoom - 1), torch.stack([x, y], 1))
        return out

    def _load(self) -> dict[str, NDArray[Any]] | None:
        if self._arrays is None and self._cacheable is not False:
            first = self.read(0)
            self._cacheable = sum(array.nbytes for array in first.values()) * len(self) <= self.cache_bytes
            if self._cacheable:
                arrays = {key: np.empty((len(self), *array.shape), array.dtype) for key, array in first.items()}
                for index in range(len(self)):
                    sample = self.read(index) if index else first
                    if sample["image"].shape != first["image"].shape:  # cannot be stacked: leave them in their files
                        self._cacheable = False
                        return None
                    for key, array in sample.items():
                        arrays[key][index] = array
                self._arrays = arrays
        return self._arrays


class DenseArrays(DenseTasks):
    """Samples that are in memory already: arrays as `DenseTasks.read` gives them, with a first axis N."""

    def __init__(
        self, arrays: dict[str, NDArray[Any]], classes: Sequence[str], identity: str, zoom: float = 1.0
    ) -> None:
        super().__init__(len(arrays["image"]), classes, zoom=zoom)
        self._arrays = arrays
        self._identity = identity

    @property
    def identity(self) -> str:
        return hashlib.sha256(self._identity.encode()).hexdigest()[:16]

    def read(self, index: int) -> dict[str, NDArray[Any]]:
        assert self._arrays is not None
        return {key: array[index] for key, array in self._arrays.items()}


class Subset(Dataset[Any]):
    """Some samples of a data set, by index; it shares the cache of the whole."""

    def __init__(self, whole: DenseTasks, indices: Sequence[int]) -> None:
        self.whole = whole
        self.indices = list(indices)
        self.classes, self.preprocessing = whole.classes, whole.preprocessing

    @property
    def identity(self) -> str:
        """A short hash of the whole and of the indices."""
        return hashlib.sha256(json.dumps([self.whole.identity, self.indices]).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.whole[self.indices[index]]

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The samples at `indices`, stacked."""
        return self.whole.batch([self.indices[int(i)] for i in indices])

    def augment(self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """See `DenseTasks.augment`."""
        return self.whole.augment(batch, generator)


def to_tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Compact arrays with a first axis N as the tensors of a batch."""
    out: dict[str, Tensor] = {}
    for key, array in arrays.items():
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if key == "image":
            pixels = tensor.permute(0, 3, 1, 2).float().contiguous()
            mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (MEAN, STD))
            out[key] = pixels.mul_(1 / 255).sub_(mean).div_(std)
        elif key == "semseg":
            out[key] = tensor.long()
        elif key == "normals":
            out[key] = tensor.permute(0, 3, 1, 2).float().contiguous()
        else:
            out[key] = tensor.float().unsqueeze(1)
    return out


def flip(batch: Mapping[str, Tensor], chosen: Tensor) -> dict[str, Tensor]:
    """Mirror the samples where `chosen` (N,) is true; normals that point right then point left."""
    out: dict[str, Tensor] = {}
    for key, value in batch.items():
        mirrored = value.flip(-1)
        if key == "normals":
            mirrored = mirrored * torch.tensor([-1.0, 1.0, 1.0]).view(1, 3, 1, 1)
        out[key] = torch.where(chosen.view(-1, *[1] * (value.ndim - 1)), mirrored, value)
    return out


def magnify(batch: Mapping[str, Tensor], scale: Tensor, corner: Tensor) -> dict[str, Tensor]:
    """Enlarge a window of 1/scale of each sample to the full size; what looks larger is nearer, so depth is divided
    by scale.

    `scale` (N,) is at least 1; `corner` (N, 2) in 0..1 places the window (x, y). Images are interpolated, labels take
    the nearest.
    """
    count, _, height, width = batch["image"].shape
    steps = [(torch.arange(n) + 0.5) / n for n in (width, height)]
    # Window positions in 0..1 of the picture: (N, W) and (N, H).
    x, y = (corner[:, i, None] * (1 - 1 / scale[:, None]) + steps[i] / scale[:, None] for i in (0, 1))
    grid = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], -1) * 2 - 1
    columns, rows = (x * width).long().clamp(0, width - 1), (y * height).long().clamp(0, height - 1)
    sample = torch.arange(count)[:, None, None]
    out: dict[str, Tensor] = {}
    for key, value in batch.items():
        if key == "image":
            out[key] = torch.nn.functional.grid_sample(
                value, grid, mode="bilinear", padding_mode="border", align_corners=False
            )
            continue
        last = value if value.ndim == 3 else value.permute(0, 2, 3, 1)
        picked = last[sample, rows[:, :, None], columns[:, None, :]]
        out[key] = picked if value.ndim == 3 else picked.permute(0, 3, 1, 2).contiguous()
    if "depth" in out:
        out["depth"] = out["depth"] / scale.view(-1, 1, 1, 1)
    return out
