"""Reads NYUD-v2 in its multi-task layout, and generated scenes in the same layout.

    root/images/*.jpg|png   segmentation/   depth/   normals/   edge/   saliency/   gt_sets/{train,val}.txt

Three encodings of NYUD-v2 are about (that of the MTL survey, of ASTMT, and of ATRC and InvPT). `MultiTaskFolder`
tells them apart by the kinds of file in each folder, checks the values it reads against that choice, and refuses what
fits none or several.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mtlc.errors import UserError, nearest
from mtlc.evaluation.splits import Splits
from mtlc.files import atomic_folder, one_at_a_time
from mtlc.zoo.dense import DenseArrays, DenseTasks, Subset
from mtlc.zoo.label_files import DECODE, ENCODINGS, Encoding, open_rgb, resize_label
from mtlc.zoo.scenes import CLASSES, VERSION, render

NYU40: tuple[str, ...] = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books",
    "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "other structure", "other furniture", "other prop",
)  # fmt: skip
VALIDATION_START = 1_000_000
"""Validation scenes are numbered from here, so that they are the same however many training scenes there are."""
FOLDERS = {"semseg": "segmentation", "depth": "depth", "normals": "normals", "edge": "edge", "sal": "saliency"}
_META = "meta.json"


class MultiTaskFolder(DenseTasks):
    """One split of a folder in the NYUD-v2 multi-task layout, of any of the encodings in `ENCODINGS`.

    `size` (H, W) resizes: bilinear for the image, nearest for labels, and the maximum for edges, which would break up
    otherwise. `tasks` picks some of semseg, depth, normals, edge, sal; all that the folder has by default.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        size: tuple[int, int] | None = None,
        tasks: Sequence[str] | None = None,
        cache_bytes: int = 2 << 30,
        zoom: float = 1.0,
    ) -> None:
        self.root, self.size = Path(root), size
        if not self.root.is_dir():
            raise UserError(
                f"{root}: no such folder; put NYUD-v2 in its multi-task layout there, or use mtlc.zoo:scenes"
            )
        for task in tasks or ():
            if task not in FOLDERS:
                raise UserError(f"[data] tasks: unknown task {task!r}{nearest(task, FOLDERS)}")
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise UserError(f"[data] size = {list(size)}: give a height and a width in pixels")
        self.names = self._read_names(split)
        self.meta = _read_meta(self.root)
        here = tuple(task for task, folder in FOLDERS.items() if (self.root / folder).is_dir())
        self.tasks = tuple(tasks) if tasks is not None else here
        for task in self.tasks:
            if task not in here:
                raise UserError(
                    f"{self.root / FOLDERS[task]}: no such folder; put its labels there or leave {task!r} out"
                )
        self.encoding = self._detect()
        classes = tuple(self.meta["classes"]) if self.meta else NYU40 if self.encoding.shift else ("unlabelled", *NYU40)
        super().__init__(len(self.names), classes, cache_bytes, zoom)

    @property
    def identity(self) -> str:
        """A hash of the names, sizes and times of the split's files and of how they are read."""
        digest = hashlib.sha256(
            json.dumps([self.encoding.name, self.size, self.tasks, self.classes, self.zoom]).encode()
        )
        for key in ("image", *self.tasks):
            for index in range(len(self)):
                path = self._path(key, index)
                try:
                    status = path.stat()
                except OSError:
                    raise UserError(
                        f"{path}: missing, though gt_sets lists it; copy it there or take it off the list"
                    ) from None
                digest.update(f"{path.name}:{status.st_size}:{status.st_mtime_ns}".encode())
        return digest.hexdigest()[:16]

    def read(self, index: int) -> dict[str, NDArray[Any]]:
        """One sample from its files; see `DenseTasks.read`."""
        sample: dict[str, NDArray[Any]] = {"image": open_rgb(self._path("image", index))}
        for task in self.tasks:
            path = self._path(task, index)
            label = DECODE[task](path, self.encoding, len(self.classes))
            if label.shape[:2] != sample["image"].shape[:2]:
                raise UserError(f"{path}: {label.shape[:2]} pixels, but its image has {sample['image'].shape[:2]}")
            sample[task] = label
        if self.size is not None and self.size != sample["image"].shape[:2]:
            height, width = self.size
            resized = np.asarray(
                Image.fromarray(sample.pop("image")).resize((width, height), Image.Resampling.BILINEAR)
            )
            sample = {
                "image": resized,
                **{task: resize_label(task, label, self.size) for task, label in sample.items()},
            }
        return sample

    def _path(self, key: str, index: int) -> Path:
        if key == "image":
            return self.root / "images" / (self.names[index] + self.encoding.suffixes["image"])
        return self.root / FOLDERS[key] / (self.names[index] + self.encoding.suffixes.get(key, ".png"))

    def _read_names(self, split: str) -> list[str]:
        path = self.root / "gt_sets" / f"{split}.txt"
        try:
            names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
        except OSError:
            raise UserError(
                f"{path}: no such file; it lists the images of the split, one name a line without a suffix"
            ) from None
        if not names:
            raise UserError(f"{path}: empty; list the images of the split, one name a line without a suffix")
        for name in names:
            if name != Path(name).name or "\\" in name:
                raise UserError(f"{path}: {name!r} is not a plain file name")
        return names

    def _detect(self) -> Encoding:
        """The one encoding that every folder here agrees with."""
        found: dict[str, str] = {}
        for key in ("image", *(task for task in self.tasks if task != "sal")):
            folder = self.root / ("images" if key == "image" else FOLDERS[key])
            suffixes = sorted(
                {e.suffixes[key] for e in ENCODINGS if (folder / (self.names[0] + e.suffixes[key])).is_file()}
            )
            if len(suffixes) != 1:
                what = f"both {' and '.join(suffixes)}" if suffixes else "none"
                kinds = " or ".join(sorted({e.suffixes[key] for e in ENCODINGS}))
                raise UserError(f"{folder}: holds {what} for {self.names[0]!r}; expected one file ending in {kinds}")
            found[key] = suffixes[0]
        fits = [e for e in ENCODINGS if all(e.suffixes[key] == suffix for key, suffix in found.items())]
        listing = ", ".join(f"{key} {suffix}" for key, suffix in found.items())
        if not fits:
            raise UserError(
                f"{self.root}: its files ({listing}) fit no known encoding of NYUD-v2; convert it to that of MTL-survey"
            )
        if len({e.shift for e in fits}) > 1 and "semseg" in found:
            names = " and ".join(e.name for e in fits)
            raise UserError(f"{self.root}: its files ({listing}) fit {names}, which number the classes differently")
        return fits[0]


def _read_meta(root: Path) -> dict[str, Any]:
    path = root / _META
    if not path.is_file():
        return {}
    try:
        meta = json.loads(path.read_text())
        classes = meta["classes"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path}: damaged; make the folder again") from None
    if not isinstance(classes, list) or not all(isinstance(x, str) for x in classes) or not 0 < len(classes) < 255:
        raise UserError(f"{path}: 'classes' must list 1 to 254 names; make the folder again")
    result: dict[str, Any] = meta
    return result


# --- Writing and the factories --------------------------------------------------------------------------------------


def write_scenes(root: str | Path, train: int = 2000, val: int = 500, size: int = 64, seed: int = 0) -> None:
    """Render scenes into `root`, which appears only when it is whole. Images and labels are lossless."""
    with atomic_folder(Path(root)) as folder:
        for name in ("images", "gt_sets", *FOLDERS.values()):
            (folder / name).mkdir()
        for split, count, start in (("train", train, 0), ("val", val, VALIDATION_START)):
            names = [f"{split}_{index:06d}" for index in range(count)]
            for index, name in enumerate(names):
                sample = {key: array[0] for key, array in render(1, size, seed, start + index).items()}
                Image.fromarray(sample["image"]).save(folder / "images" / f"{name}.png", compress_level=3)
                Image.fromarray(sample["semseg"] + np.uint8(1)).save(folder / "segmentation" / f"{name}.png")
                Image.fromarray(sample["sal"] * np.uint8(255)).save(folder / "saliency" / f"{name}.png")
                for task in ("depth", "normals", "edge"):
                    np.save(folder / FOLDERS[task] / f"{name}.npy", sample[task])
            (folder / "gt_sets" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        (folder / _META).write_text(json.dumps(_parameters(train, val, size, seed), indent=1) + "\n")


def _parameters(train: int, val: int, size: int, seed: int) -> dict[str, Any]:
    made = {"train": train, "val": val, "size": size, "seed": seed, "version": VERSION}
    return {"generator": "mtlc.zoo.scenes", **made, "classes": list(CLASSES)}


def nyud(
    root: str | Path,
    size: Sequence[int] | None = None,
    tasks: Sequence[str] | None = None,
    calibration: float = 0.1,
    seed: int = 0,
    zoom: float = 1.0,
    cache_bytes: int = 2 << 30,
) -> Splits:
    """The splits of a folder in the layout. `calibration` is the share of the training images (at least one) that is
    held out.
    """
    shape = (int(size[0]), int(size[-1])) if size is not None else None
    train = MultiTaskFolder(root, "train", shape, tasks, cache_bytes, zoom)
    validation = MultiTaskFolder(root, "val", shape, tasks, cache_bytes)
    return hold_out(train, validation, calibration, seed)


def scenes(
    root: str | Path | None = None,
    train: int = 2000,
    val: int = 500,
    size: int = 64,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    calibration: float = 0.1,
    zoom: float = 1.0,
) -> Splits:
    """Generated scenes: kept at `root`, which is made if it is missing, or in memory only."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 8 or size % 8:
        raise UserError(f"[data] size = {size}: give a multiple of 8")
    if train < 2 or val < 1:
        raise UserError(f"[data] train = {train}, val = {val}: give at least 2 and 1")
    if root is None:
        made = {
            split: DenseArrays(
                _chosen(render(count, size, seed, start), tasks),
                CLASSES,
                f"scenes:{VERSION}:{start}+{count}:{size}:{seed}:{tasks}:{zoom}",
                zoom,
            )
            for split, count, start in (("train", train, 0), ("val", val, VALIDATION_START))
        }
        return hold_out(made["train"], made["val"], calibration, seed)
    if not Path(root).exists():
        with one_at_a_time(Path(root)):  # of several that need it one makes it: its files' times are in its identity
            if not Path(root).exists():
                write_scenes(root, train, val, size, seed)
    meta, wanted = _read_meta(Path(root)), _parameters(train, val, size, seed)
    for key, value in wanted.items():
        if meta.get(key) != value:
            raise UserError(
                f"{root}: holds {key} = {meta.get(key)}, the job asks for {value}; "
                "delete the folder, choose another root, or read it as it is with mtlc.zoo:nyud"
            )
    return nyud(root, None, tasks, calibration, seed, zoom)


def _chosen(arrays: dict[str, NDArray[Any]], tasks: Sequence[str] | None) -> dict[str, NDArray[Any]]:
    for task in tasks or ():
        if task not in FOLDERS:
            raise UserError(f"[data] tasks: unknown task {task!r}{nearest(task, FOLDERS)}")
    return {key: array for key, array in arrays.items() if key == "image" or tasks is None or key in tasks}


def hold_out(train: DenseTasks, validation: DenseTasks, calibration: float, seed: int) -> Splits:
    """Splits whose calibration images are a fixed random share of the training images, and no longer among them."""
    if not 0 < calibration < 1 or len(train) < 2:
        raise UserError(f"[data] calibration = {calibration}: a share between 0 and 1, of at least 2 training images")
    order = np.random.default_rng(np.random.SeedSequence((seed, len(train)))).permutation(len(train))
    count = min(max(1, round(calibration * len(train))), len(train) - 1)
    held, rest = sorted(int(i) for i in order[:count]), sorted(int(i) for i in order[count:])
    return Splits(Subset(train, rest), Subset(train, held), validation, dict(train.preprocessing))
