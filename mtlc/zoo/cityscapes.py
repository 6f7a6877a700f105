"""Reads Cityscapes for several tasks, as it is published and as multi-task papers keep it at a quarter of the size.

    published   leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png
                gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png, or …_labelTrainIds.png
                disparity/SPLIT/CITY/NAME_disparity.png      camera/SPLIT/CITY/NAME_camera.json
    numbered    SPLIT/image/N.png   SPLIT/seg/N.png   SPLIT/depth/N.png

Label numbers 0 to 33 become the 19 classes that are judged, or their 7 groups; all others are 255, ignored. A disparity
is stored in 16 bits: 0 is none, else (p − 1) / 256 pixels of the published size, 2048 wide. A depth is baseline · focal
length / disparity, in metres.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlc.errors import UserError, reason
from mtlc.evaluation.splits import Splits
from mtlc.files import check_plain
from mtlc.zoo.checked_files import class_numbers, open_image, open_numbers
from mtlc.zoo.dense import hold_out
from mtlc.zoo.dense_folder import DenseFolder, HowToRead, chosen_tasks, how_to_read

CLASSES: tuple[str, ...] = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
GROUPS: tuple[str, ...] = ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The published label number of each class."""
_GROUP_OF = (0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 5, 6, 6, 6, 6, 6, 6)
_MOST_ID = 33
TASKS = ("semseg", "depth", "disparity")
_WIDTH = 2048
"""Pixels of the published pictures, in which disparities are stored."""
BASELINE, FOCAL_LENGTH = 0.209313, 2262.52
"""Metres and pixels, of the published cameras; for pictures without a camera file."""
_FARTHEST = 10_000.0
_LONGEST_JSON = 1 << 16
_SUFFIX = "_leftImg8bit.png"


class Cityscapes(DenseFolder):
    """One split of the folder. `numbered` is its layout, `train_ids` whether labels are numbers of classes already."""

    def __init__(
        self, root: Path, split: str, tasks: Sequence[str], how: HowToRead, classes: int, max_depth: float
    ) -> None:
        self.split, self.max_depth = split, max_depth
        self.numbered = not (root / "leftImg8bit").is_dir()
        names = _numbered_names(root / split) if self.numbered else _published_names(root / "leftImg8bit" / split)
        super().__init__(root, names, tasks, CLASSES if classes == len(CLASSES) else GROUPS, how)
        self.train_ids = not self.numbered and not self._labels(0, "labelIds").exists()
        self.has_cameras = not self.numbered and (root / "camera" / split).is_dir()
        self._table = _table(len(self.classes), self.train_ids)

    def encoding_name(self) -> str:
        layout = "numbered" if self.numbered else "labelTrainIds" if self.train_ids else "labelIds"
        cameras = "cameras" if self.has_cameras else "one camera"
        return f"Cityscapes {layout}, {cameras}, to {self.max_depth:g} m"

    def path(self, key: str, index: int) -> Path:
        name = self.names[index]
        if self.numbered:
            folder = {"image": "image", "semseg": "seg"}.get(key, "depth")
            return self.root / self.split / folder / f"{name}.png"
        if key == "image":
            return self.root / "leftImg8bit" / self.split / f"{name}{_SUFFIX}"
        if key == "semseg":
            return self._labels(index, "labelTrainIds" if self.train_ids else "labelIds")
        return self.root / "disparity" / self.split / f"{name}_disparity.png"

    def label(self, task: str, index: int) -> NDArray[Any]:
        path = self.path(task, index)
        if task == "semseg":
            known = (*range(len(CLASSES)), 255) if self.train_ids else (*range(_MOST_ID + 1), 255)
            return self._table[class_numbers(open_numbers(path), path, known, "Cityscapes")]
        disparity = _disparity(path)
        if task == "disparity":  # in pixels of the picture, whatever its size
            return disparity * np.float32(disparity.shape[1] / _WIDTH)
        baseline, focal_length = self._camera(index)
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = np.float32(baseline * focal_length) / disparity
        return np.where(np.isfinite(depth) & (depth <= self.max_depth), depth, 0).astype(np.float32)

    def _labels(self, index: int, kind: str) -> Path:
        return self.root / "gtFine" / self.split / f"{self.names[index]}_gtFine_{kind}.png"

    def _camera(self, index: int) -> tuple[float, float]:
        """Baseline in metres and focal length in pixels of the published size."""
        if not self.has_cameras:
            return BASELINE, FOCAL_LENGTH
        return _camera_of(self.root / "camera" / self.split / f"{self.names[index]}_camera.json")


def cityscapes(
    root: str | Path,
    tasks: Sequence[str] | None = None,
    size: Sequence[int] | None = None,
    crop: Sequence[int] | None = None,
    zoom: float = 1.0,
    classes: int = 19,
    max_depth: float = 80.0,
    calibration: float = 0.1,
    seed: int = 0,
    workers: int = 0,
    cache_bytes: int = 0,
) -> Splits:
    """The splits of Cityscapes: 2,975 pictures for training, of which `calibration` is the share that is held out, and
    500 for validation.

    `tasks` picks some of semseg, depth (metres, 0 where there is none or beyond `max_depth`) and disparity (pixels of
    the picture, NaN where there is none); semseg and depth by default. `classes` is 19, or 7 for the groups. `size`
    (H, W) is that of all pictures. Samples are read from the files each time, by `workers` processes. Training sees
    mirror images, magnified up to `zoom`, and of these windows of `crop` (H, W).
    """
    if not isinstance(root, str | Path) or not Path(root).is_dir():
        raise UserError(f"{root}: no such folder; put Cityscapes there (docs/dense-data.md)")
    if classes not in (len(CLASSES), len(GROUPS)) or isinstance(classes, bool):
        raise UserError(f"[data] classes = {classes!r}: 19, or 7 for the groups")
    if isinstance(max_depth, bool) or not isinstance(max_depth, int | float) or not 0 < max_depth <= _FARTHEST:
        raise UserError(f"[data] max_depth = {max_depth!r}: give metres, above 0 and at most {_FARTHEST:g}")
    folder = Path(root)
    chosen = ("semseg", "depth") if tasks is None else chosen_tasks(tasks, TASKS)
    how = how_to_read(size, False, crop, zoom, workers, cache_bytes)
    train = Cityscapes(folder, "train", chosen, how, classes, max_depth)
    validation = Cityscapes(folder, "val", chosen, how.of_validation(), classes, max_depth)
    return hold_out(train, validation, calibration, seed)


def _published_names(folder: Path) -> list[str]:
    """``CITY/CITY_SEQUENCE_FRAME`` of each picture, sorted."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; it holds a folder of pictures for each city")
    found = [f"{path.parent.name}/{path.name.removesuffix(_SUFFIX)}" for path in folder.glob(f"*/*{_SUFFIX}")]
    if not found:
        raise UserError(f"{folder}: no picture CITY/NAME{_SUFFIX} in it")
    return sorted(found)


def _numbered_names(folder: Path) -> list[str]:
    """The numbers of the pictures, in their order."""
    found = [path.stem for path in (folder / "image").glob("*.png")]
    if not found:
        raise UserError(
            f"{folder.parent}: neither leftImg8bit/ as published nor {folder.name}/image/0.png, 1.png, …; "
            "see docs/dense-data.md"
        )
    for name in found:
        if not (name.isascii() and name.isdigit()):
            raise UserError(f"{folder / 'image' / name}.png: pictures of this layout are called by numbers, 0.png, …")
    return sorted(found, key=int)


def _table(classes: int, train_ids: bool) -> NDArray[np.uint8]:
    """(256,): from a stored label number to a class, 255 for what is not judged."""
    table = np.full(256, 255, np.uint8)
    stored = range(len(CLASSES)) if train_ids else _IDS
    table[list(stored)] = range(len(CLASSES)) if classes == len(CLASSES) else _GROUP_OF
    return table


def _disparity(path: Path) -> NDArray[np.float32]:
    """Pixels of the published size, NaN where there is none. Raises `UserError` for a picture of 8 bits."""
    image = open_image(path)
    if not image.mode.startswith("I"):
        raise UserError(f"{path}: a picture of mode {image.mode}; disparities are stored in 16 bits of one channel")
    stored = np.asarray(image)
    if stored.min(initial=0) < 0 or stored.max(initial=0) > 65535:
        raise UserError(f"{path}: values beyond 16 bits")
    return np.where(stored == 0, np.nan, (stored.astype(np.float32) - 1) / 256).astype(np.float32)


def _camera_of(path: Path) -> tuple[float, float]:
    check_plain(path)
    try:
        if path.stat().st_size > _LONGEST_JSON:
            raise ValueError("too long")
        found = json.loads(path.read_text())
        baseline, focal_length = (_positive(found, *keys) for keys in (("extrinsic", "baseline"), ("intrinsic", "fx")))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: no camera that can be read ({reason(error)})") from None
    return baseline, focal_length


def _positive(found: Any, part: str, key: str) -> float:
    value = found.get(part) if isinstance(found, Mapping) else None
    value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise ValueError(f"{part}.{key} is {value!r}")
    return float(value)
