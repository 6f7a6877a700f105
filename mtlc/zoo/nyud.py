"""Reads NYUD-v2 in its multi-task layout, and generated scenes in the same layout.

    root/images/*.jpg|png   segmentation/   depth/   normals/   edge/   saliency/   gt_sets/{train,val}.txt

Three encodings of NYUD-v2 are about (that of the MTL survey, of ASTMT, and of ATRC and InvPT). `MultiTaskFolder`
tells them apart by the kinds of file in each folder, checks the values it reads against that choice, and refuses what
fits none or several.
"""

from __future__ import annotations

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
from mtlc.zoo.checked_files import read_names
from mtlc.zoo.dense import DenseArrays, hold_out
from mtlc.zoo.dense_folder import DenseFolder, HowToRead, chosen_tasks, how_to_read
from mtlc.zoo.label_files import DECODE, ENCODINGS, Encoding
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
SCENES_FOLDERS = {"floor": "segmentation", "detection": "detection"}
"""Where the labels lie that generated scenes have besides, if a job asks for them by name."""
_FOLDERS = FOLDERS | SCENES_FOLDERS
_ALWAYS = {"sal": ".png", "detection": ".npy"}
"""The suffix of labels that tell nothing of the encoding."""
_META = "meta.json"


class MultiTaskFolder(DenseFolder):
    """One split of a folder in the NYUD-v2 multi-task layout, of any of the encodings in `ENCODINGS`.

    `size` (H, W) resizes: bilinear for the image, nearest for labels, and the maximum for edges, which would break up
    otherwise. `tasks` picks some of semseg, depth, normals, edge, sal; all that the folder has by default. Folders of
    generated scenes have floor and detection too, for those who ask. `how` says all there is to say of reading.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        size: tuple[int, int] | None = None,
        tasks: Sequence[str] | None = None,
        cache_bytes: int = 2 << 30,
        zoom: float = 1.0,
        how: HowToRead | None = None,
    ) -> None:
        folder = Path(root)
        if not folder.is_dir():
            raise UserError(
                f"{root}: no such folder; put NYUD-v2 in its multi-task layout there, or use mtlc.zoo:scenes"
            )
        if tasks is not None:
            tasks = chosen_tasks(tasks, tuple(_FOLDERS))
        how = how_to_read(size, zoom=zoom, cache_bytes=cache_bytes) if how is None else how
        names = read_names(folder / "gt_sets" / f"{split}.txt")
        self.meta = _read_meta(folder)
        here = tuple(task for task, name in FOLDERS.items() if (folder / name).is_dir())
        tasks = here if tasks is None else tasks
        for task in tasks:
            if not (folder / _FOLDERS[task]).is_dir():
                raise UserError(
                    f"{folder / _FOLDERS[task]}: no such folder; put its labels there or leave {task!r} out"
                )
            if task in SCENES_FOLDERS and not self.meta:
                raise UserError(f"[data] tasks: only generated scenes have {task!r}: use mtlc.zoo:scenes")
        self.encoding = _detected(folder, names[0], tasks)
        classes = tuple(self.meta["classes"]) if self.meta else NYU40 if self.encoding.shift else ("unlabelled", *NYU40)
        super().__init__(folder, names, tasks, classes, how)

    def encoding_name(self) -> str:
        return self.encoding.name

    def path(self, key: str, index: int) -> Path:
        if key == "image":
            return self.root / "images" / (self.names[index] + self.encoding.suffixes["image"])
        suffix = _ALWAYS.get(key) or self.encoding.suffixes["semseg" if key == "floor" else key]
        return self.root / _FOLDERS[key] / (self.names[index] + suffix)

    def label(self, task: str, index: int) -> NDArray[Any]:
        return DECODE[task](self.path(task, index), self.encoding, len(self.classes))


def _detected(root: Path, first: str, tasks: Sequence[str]) -> Encoding:
    """The one encoding that every folder of these tasks agrees with, by the files of the `first` sample."""
    found: dict[str, str] = {}
    told = ["semseg" if task == "floor" else task for task in tasks if task not in _ALWAYS]
    for key in ("image", *dict.fromkeys(told)):
        folder = root / ("images" if key == "image" else FOLDERS[key])
        suffixes = sorted({e.suffixes[key] for e in ENCODINGS if (folder / (first + e.suffixes[key])).is_file()})
        if len(suffixes) != 1:
            what = f"both {' and '.join(suffixes)}" if suffixes else "none"
            kinds = " or ".join(sorted({e.suffixes[key] for e in ENCODINGS}))
            raise UserError(f"{folder}: holds {what} for {first!r}; expected one file ending in {kinds}")
        found[key] = suffixes[0]
    fits = [e for e in ENCODINGS if all(e.suffixes[key] == suffix for key, suffix in found.items())]
    listing = ", ".join(f"{key} {suffix}" for key, suffix in found.items())
    if not fits:
        raise UserError(
            f"{root}: its files ({listing}) fit no known encoding of NYUD-v2; convert it to that of MTL-survey"
        )
    if len({e.shift for e in fits}) > 1 and "semseg" in found:
        names = " and ".join(e.name for e in fits)
        raise UserError(f"{root}: its files ({listing}) fit {names}, which number the classes differently")
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


def write_scenes(
    root: str | Path, train: int = 2000, val: int = 500, size: int = 64, seed: int = 0, boxes: bool = False
) -> None:
    """Render scenes into `root`, which appears only when it is whole. Images and labels are lossless.

    With `boxes` the labels of detection are among them.
    """
    with atomic_folder(Path(root)) as folder:
        for name in ("images", "gt_sets", *FOLDERS.values(), *(["detection"] if boxes else [])):
            (folder / name).mkdir()
        for split, count, start in (("train", train, 0), ("val", val, VALIDATION_START)):
            names = [f"{split}_{index:06d}" for index in range(count)]
            for index, name in enumerate(names):
                sample = {key: array[0] for key, array in render(1, size, seed, start + index).items()}
                Image.fromarray(sample["image"]).save(folder / "images" / f"{name}.png", compress_level=3)
                Image.fromarray(sample["semseg"] + np.uint8(1)).save(folder / "segmentation" / f"{name}.png")
                Image.fromarray(sample["sal"] * np.uint8(255)).save(folder / "saliency" / f"{name}.png")
                for task in ("depth", "normals", "edge", *(["detection"] if boxes else [])):
                    np.save(folder / _FOLDERS[task] / f"{name}.npy", sample[task])
            (folder / "gt_sets" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        (folder / _META).write_text(json.dumps(_parameters(train, val, size, seed, boxes), indent=1) + "\n")


def _parameters(train: int, val: int, size: int, seed: int, boxes: bool) -> dict[str, Any]:
    made = {"train": train, "val": val, "size": size, "seed": seed, "version": VERSION}
    if boxes:  # a folder with boxes serves a job without
        made["boxes"] = True
    return {"generator": "mtlc.zoo.scenes", **made, "classes": list(CLASSES)}


def nyud(
    root: str | Path,
    size: Sequence[int] | None = None,
    tasks: Sequence[str] | None = None,
    calibration: float = 0.1,
    seed: int = 0,
    zoom: float = 1.0,
    cache_bytes: int = 2 << 30,
    pad: bool = False,
    crop: Sequence[int] | None = None,
    workers: int = 0,
) -> Splits:
    """The splits of a folder in the layout. `calibration` is the share of the training images (at least one) that is
    held out.

    Samples are kept in memory where `cache_bytes` hold them all; with 0 they are read from the files each time, by
    `workers` processes. `size` (H, W) is that of all pictures, with `pad` in their own proportions; training sees
    mirror images, magnified up to `zoom`, and of these windows of `crop` (H, W).
    """
    how = how_to_read(size, pad, crop, zoom, workers, cache_bytes)
    train = MultiTaskFolder(root, "train", tasks=tasks, how=how)
    validation = MultiTaskFolder(root, "val", tasks=tasks, how=how.of_validation())
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
    """Generated scenes: kept at `root`, which is made if it is missing, or in memory only.

    `tasks` picks some of semseg, depth, normals, edge, sal (by default all of these), floor and detection.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 8 or size % 8:
        raise UserError(f"[data] size = {size}: give a multiple of 8")
    if train < 2 or val < 1:
        raise UserError(f"[data] train = {train}, val = {val}: give at least 2 and 1")
    for task in tasks or ():
        _check_known(task)
    boxes = tasks is not None and "detection" in tasks
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
                write_scenes(root, train, val, size, seed, boxes)
    meta, wanted = _read_meta(Path(root)), _parameters(train, val, size, seed, boxes)
    for key, value in wanted.items():
        if meta.get(key) != value:
            raise UserError(
                f"{root}: holds {key} = {meta.get(key)}, the job asks for {value}; "
                "delete the folder, choose another root, or read it as it is with mtlc.zoo:nyud"
            )
    return nyud(root, None, tasks, calibration, seed, zoom)


def _chosen(arrays: dict[str, NDArray[Any]], tasks: Sequence[str] | None) -> dict[str, NDArray[Any]]:
    wanted = ("image", *(FOLDERS if tasks is None else tasks))
    return {key: array for key, array in arrays.items() if key in wanted}


def _check_known(task: str) -> None:
    if task not in _FOLDERS:
        raise UserError(f"[data] tasks: unknown task {task!r}{nearest(task, _FOLDERS)}")
