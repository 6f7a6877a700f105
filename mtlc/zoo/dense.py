"""Makes batches of data sets of dense prediction, from their files or from compact arrays in memory, and augments them.

Augmentation keeps labels true: a mirrored image has mirrored normals, a magnified one is nearer, boxes move along.

A sample is a dict of tensors: `image` (3, H, W) float32, normalised; `semseg` and `human_parts` (H, W) int64, 255
ignored; `depth` (1, H, W) float32, metres, 0 invalid; `disparity` (1, H, W) float32, pixels, NaN invalid; `normals`
(3, H, W) float32 unit vectors, x to the right, 0 invalid; `edge` and `sal` (1, H, W) float32, 0, 1 or 255, which is
ignored; `floor` (H, W) int64, 0 or 1; `detection` (M, 5) float32, rows x1, y1, x2, y2, class in pixels, of class -1
where there is nothing. Besides, `class` () int64 and `numbers` (K,) float32 say something of the whole picture.

Labels of other names say by `kinds` which of these they are like.
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
from torch.utils.data import Dataset, get_worker_info

from mtlc.errors import UserError
from mtlc.evaluation.collation import labelled_key
from mtlc.evaluation.loading_workers import Workers
from mtlc.evaluation.splits import Splits

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESSING: dict[str, Any] = {
    "scale": 1 / 255,
    "mean": list(MEAN),
    "std": list(STD),
    "color": "RGB",
    "layout": "NCHW",
}
CLASS_NUMBERS = ("semseg", "human_parts", "floor")
"""Labels that are class numbers (H, W)."""
OF_WHOLE = ("class", "numbers")
"""Labels that have no places in the picture."""
Kinds = Mapping[str, str]
"""By the name of a label, the one at the top that it is like; others are themselves."""

_KEPT = 0.25  # of a box's area that must be left in a window for it to be a box there


class DenseTasks(Dataset[Any], ABC):
    """A map-style data set that keeps its samples as compact arrays, if `cache_bytes` hold them all, from the first
    use on. With 0 nothing is kept: each batch is read from where the samples are.

    A subclass gives `read` and `identity`. All samples have one size if they are to be batched. `zoom`, `crop`
    and `mirror` are for training (`augment`); `workers` processes read the samples of a batch that is not kept.
    """

    def __init__(
        self,
        length: int,
        classes: Sequence[str],
        cache_bytes: int = 2 << 30,
        zoom: float = 1.0,
        crop: tuple[int, int] | None = None,
        workers: int = 0,
        mirror: bool = True,
        kinds: Kinds | None = None,
    ) -> None:
        self.classes = tuple(classes)
        self.preprocessing = dict(PREPROCESSING)
        self.cache_bytes = cache_bytes
        self.zoom, self.crop, self.mirror = zoom, crop, mirror
        self.kinds: Kinds = dict(kinds or {})
        self._length = length
        self._arrays: dict[str, NDArray[Any]] | None = None
        self._cacheable: bool | None = None if cache_bytes else False
        self._workers = Workers(_Read(self), workers, None) if workers else None

    @abstractmethod
    def read(self, index: int) -> dict[str, NDArray[Any]]:
        """One sample, without labels that it has not: image uint8 (H, W, 3), semseg and human_parts uint8 (H, W), depth
        and disparity float32 (H, W), normals float32 (H, W, 3), edge, sal and floor uint8 (H, W), detection float32
        (M, 5).
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
            return to_tensors({key: array[chosen] for key, array in arrays.items()}, self.kinds)
        places = [int(index) for index in indices]
        samples = [self.read(place) for place in places] if self._workers is None else self._workers.samples(places)
        sizes = {sample["image"].shape[:2] for sample in samples}
        if len(sizes) > 1:
            one, other = sorted(sizes)[:2]
            raise UserError(
                f"[data] pictures of {one[0]} × {one[1]} and of {other[0]} × {other[1]} pixels make no batch: "
                "give [data.args] size"
            )
        return _stacked(samples, self.kinds)

    def augment(self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """A random mirror image of each sample with odds of one half; with `zoom` > 1, also a random magnification up
        to it; with `crop`, a random window of that size.
        """
        count = len(batch["image"])
        out = dict(batch)
        if self.mirror:
            out = flip(out, torch.rand(count, generator=generator) < 0.5, self.kinds)
        if self.zoom > 1:
            scale, x, y = torch.rand(3, count, generator=generator)
            out = magnify(out, 1 + scale * (self.zoom - 1), torch.stack([x, y], 1), self.kinds)
        if self.crop is None:
            return out
        return cropped(out, self.crop, torch.rand(count, 2, generator=generator), self.kinds)

    def _load(self) -> dict[str, NDArray[Any]] | None:
        # Not in a worker, of which each would keep all samples: what is kept already came along with the fork.
        if self._arrays is None and self._cacheable is not False and get_worker_info() is None:
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


class _Read:
    """The samples of a data set as `DenseTasks.read` gives them, for workers."""

    def __init__(self, data: DenseTasks) -> None:
        self._data = data

    def __getitem__(self, index: int) -> dict[str, NDArray[Any]]:
        return self._data.read(index)


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


def _stacked(samples: Sequence[Mapping[str, NDArray[Any]]], kinds: Kinds) -> dict[str, Tensor]:
    """The samples as a batch; which of them have a label stands beside one that some have not."""
    arrays, there = dict[str, NDArray[Any]](), dict[str, Tensor]()
    for key in dict.fromkeys(key for sample in samples for key in sample):
        known = [sample.get(key) for sample in samples]
        nothing = np.zeros_like(next(array for array in known if array is not None))
        try:
            arrays[key] = np.stack([nothing if array is None else array for array in known])
        except ValueError:
            shapes = sorted({str(array.shape) for array in known if array is not None})
            raise UserError(f"[data] {key}: labels of several shapes make no batch: {', '.join(shapes)}") from None
        if any(array is None for array in known):
            there[labelled_key(key)] = torch.tensor([array is not None for array in known])
    return to_tensors(arrays, kinds) | there


def to_tensors(arrays: Mapping[str, NDArray[Any]], kinds: Kinds | None = None) -> dict[str, Tensor]:
    """Compact arrays with a first axis N as the tensors of a batch."""
    out: dict[str, Tensor] = {}
    for key, array in arrays.items():
        tensor, kind = torch.from_numpy(np.ascontiguousarray(array)), _kind(key, kinds)
        if kind == "image":
            pixels = tensor.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
            mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (MEAN, STD))
            out[key] = pixels.mul_(1 / 255).sub_(mean).div_(std)
        elif kind in CLASS_NUMBERS or kind == "class":
            out[key] = tensor.long()
        elif kind in ("detection", "numbers"):
            out[key] = tensor.float()
        elif kind == "normals":
            out[key] = tensor.permute(0, 3, 1, 2).float().contiguous()
        else:
            out[key] = tensor.float().unsqueeze(1)
    return out


def _kind(key: str, kinds: Kinds | None) -> str:
    if key.endswith(labelled_key("")):
        return OF_WHOLE[0]
    return key if kinds is None else kinds.get(key, key)


def flip(batch: Mapping[str, Tensor], chosen: Tensor, kinds: Kinds | None = None) -> dict[str, Tensor]:
    """Mirror the samples where `chosen` (N,) is true; normals that point right then point left."""
    out: dict[str, Tensor] = {}
    for key, value in batch.items():
        kind = _kind(key, kinds)
        if kind in OF_WHOLE:
            out[key] = value
            continue
        mirrored = value.flip(-1) if kind != "detection" else flip_boxes(value, batch["image"].shape[-1])
        if kind == "normals":
            mirrored = mirrored * torch.tensor([-1.0, 1.0, 1.0]).view(1, 3, 1, 1)
        out[key] = torch.where(chosen.view(-1, *[1] * (value.ndim - 1)), mirrored, value)
    return out


def magnify(
    batch: Mapping[str, Tensor], scale: Tensor, corner: Tensor, kinds: Kinds | None = None
) -> dict[str, Tensor]:
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
        kind = _kind(key, kinds)
        if kind in OF_WHOLE:
            out[key] = value
            continue
        if kind == "image":
            out[key] = torch.nn.functional.grid_sample(
                value, grid, mode="bilinear", padding_mode="border", align_corners=False
            )
            continue
        if kind == "detection":
            out[key] = magnify_boxes(value, scale, corner, height, width)
            continue
        last = value if value.ndim == 3 else value.permute(0, 2, 3, 1)
        picked = last[sample, rows[:, :, None], columns[:, None, :]]
        out[key] = picked if value.ndim == 3 else picked.permute(0, 3, 1, 2).contiguous()
        if kind in ("depth", "disparity"):
            factor = scale.view(-1, 1, 1, 1)
            out[key] = out[key] / factor if kind == "depth" else out[key] * factor
    return out


def cropped(
    batch: Mapping[str, Tensor], size: tuple[int, int], corner: Tensor, kinds: Kinds | None = None
) -> dict[str, Tensor]:
    """A window of `size` (H, W) of each sample; `corner` (N, 2) in 0..1 places it (x, y).

    Raises `UserError` where the pictures are smaller than the window.
    """
    height, width = batch["image"].shape[-2:]
    if size[0] > height or size[1] > width:
        raise UserError(f"[data] crop = {list(size)}: the pictures have only {height} × {width} pixels")
    lefts = (corner[:, 0] * (width - size[1] + 1)).long().clamp(max=width - size[1]).tolist()
    tops = (corner[:, 1] * (height - size[0] + 1)).long().clamp(max=height - size[0]).tolist()
    out: dict[str, Tensor] = {}
    for key, value in batch.items():
        places, kind = enumerate(zip(tops, lefts, strict=True)), _kind(key, kinds)
        if kind in OF_WHOLE:
            out[key] = value
        elif kind == "detection":
            out[key] = torch.stack([crop_boxes(value[row], top, left, size) for row, (top, left) in places])
        else:
            windows = [value[row, ..., top : top + size[0], left : left + size[1]] for row, (top, left) in places]
            out[key] = torch.stack(windows)
    return out


def crop_boxes(boxes: Tensor, top: int, left: int, size: tuple[int, int]) -> Tensor:
    """Boxes (M, 5) in the window of `size` (H, W) at `top` and `left`, cut at its border.

    One that keeps less than `_KEPT` of its area there becomes a row of nothing.
    """
    moved = boxes[:, :4] - torch.tensor([left, top, left, top], dtype=boxes.dtype)
    return _seen_boxes(moved, boxes[:, 4], torch.tensor([size[1], size[0]], dtype=boxes.dtype))


def flip_boxes(boxes: Tensor, width: int) -> Tensor:
    """Boxes (N, M, 5) in pictures of `width` pixels that are mirrored; what was the left side is the right one."""
    left, top, right, bottom, label = boxes.unbind(-1)
    mirrored = torch.stack([width - right, top, width - left, bottom, label], -1)
    return torch.where(label[..., None] < 0, boxes, mirrored)


def magnify_boxes(boxes: Tensor, scale: Tensor, corner: Tensor, height: int, width: int) -> Tensor:
    """Boxes (N, M, 5) in the window that `magnify` enlarges, with its `scale` (N,) and `corner` (N, 2).

    A box is cut at the window's border. One that keeps less than `_KEPT` of its area there becomes a row of nothing.
    """
    size = torch.tensor([width, height], dtype=boxes.dtype)
    # The window's first pixel (N, 1, 2), as in `magnify`.
    start = (corner * (1 - 1 / scale[:, None]) * size)[:, None]
    moved = torch.cat([(boxes[..., i : i + 2] - start) * scale[:, None, None] for i in (0, 2)], -1)
    return _seen_boxes(moved, boxes[..., 4], size)


def _seen_boxes(moved: Tensor, label: Tensor, size: Tensor) -> Tensor:
    """Boxes (..., M, 4) that begin at a window's corner, with their classes (..., M), cut at its `size` (x, y)."""
    low, high = moved[..., :2], moved[..., 2:]
    seen_low, seen_high = (torch.minimum(x.clamp(min=0), size) for x in (low, high))
    whole, seen = ((b - a).prod(-1) for a, b in ((low, high), (seen_low, seen_high)))
    cut = torch.cat([seen_low, seen_high, label[..., None]], -1)
    nothing = torch.tensor([0.0, 0.0, 0.0, 0.0, -1.0], dtype=moved.dtype)
    kept = (label >= 0) & (seen > 0) & (seen >= _KEPT * whole)
    return torch.where(kept[..., None], cut, nothing)


def hold_out(train: DenseTasks, validation: DenseTasks, calibration: float, seed: int) -> Splits:
    """Splits whose calibration images are a fixed random share of the training images, and no longer among them."""
    share = isinstance(calibration, int | float) and not isinstance(calibration, bool) and 0 < calibration < 1
    if not share or len(train) < 2:
        raise UserError(f"[data] calibration = {calibration}: a share between 0 and 1, of at least 2 training images")
    order = np.random.default_rng(np.random.SeedSequence((seed, len(train)))).permutation(len(train))
    count = min(max(1, round(calibration * len(train))), len(train) - 1)
    held, rest = sorted(int(i) for i in order[:count]), sorted(int(i) for i in order[count:])
    return splits_of(Subset(train, rest), Subset(train, held), validation)


def splits_of(train: Subset, calibration: Any, validation: Any) -> Splits:
    """The splits, of whose factory's arguments two change no sample."""
    return Splits(train, calibration, validation, dict(train.preprocessing), only_reading=("workers", "cache_bytes"))
