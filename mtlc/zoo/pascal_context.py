"""Reads PASCAL-Context with labels of five tasks, as ASTMT published it (Maninis, Radosavovic, Kokkinos, CVPR 2019).

    root/JPEGImages/ID.jpg                     ImageSets/Context/{train,val}.txt
    semseg        semseg/VOC12/ID.png          21 classes of PASCAL VOC, 255 ignored;
                  semseg/pascal-context/ID.png of pictures that VOC has not segmented
    human_parts   human_parts/ID.mat           the annotation of PASCAL-Part: objects, their parts, a mask of each
    edge          pascal-context/trainval/ID.mat   `LabelMap`: classes of 459, whose borders are the edges
    normals       normals_distill/ID.png       n = 2·pixel/255 − 1, what a network of normals said
    sal           sal_distill/ID.png           above 127, what a network of saliency said

A picture without a person has no label of human parts: every pixel is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlc.errors import UserError, reason
from mtlc.evaluation.splits import Splits
from mtlc.files import check_plain
from mtlc.zoo.checked_files import class_numbers, load_mat, open_grey, open_numbers, read_names, unit_vectors
from mtlc.zoo.dense import hold_out
from mtlc.zoo.dense_folder import DenseFolder, HowToRead, chosen_tasks, how_to_read
from mtlc.zoo.line_thinning import label_edges

VOC: tuple[str, ...] = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
PARTS: tuple[str, ...] = ("background", "head", "torso", "upper arms", "lower arms", "upper legs", "lower legs")
_PART_NUMBERS = {
    **dict.fromkeys(
        ("hair", "head", "lear", "lebrow", "leye", "mouth", "nose", "rear", "rebrow", "reye"), 1
    ),
    **dict.fromkeys(("neck", "torso"), 2),
    **dict.fromkeys(("luarm", "ruarm"), 3),
    **dict.fromkeys(("lhand", "llarm", "rhand", "rlarm"), 4),
    **dict.fromkeys(("luleg", "ruleg"), 5),
    **dict.fromkeys(("lfoot", "llleg", "rfoot", "rlleg"), 6),
}  # fmt: skip
"""By part of a person in PASCAL-Part, its number in `PARTS`."""
_PERSON = 15
_CONTEXT_CLASSES = 459
_LONGEST_JSON = 1 << 20
FOLDERS = {
    "semseg": "semseg",
    "human_parts": "human_parts",
    "normals": "normals_distill",
    "sal": "sal_distill",
    "edge": "pascal-context/trainval",
}
TASKS = tuple(FOLDERS)
NORMALS_WHERE = ("shared", "everywhere")


class PascalContext(DenseFolder):
    """One split of the folder. `normals_where` says which pixels have a normal, see `pascal_context`."""

    def __init__(
        self, root: Path, split: str, tasks: Sequence[str], how: HowToRead, normals_where: str = "shared"
    ) -> None:
        self.normals_where = normals_where
        names = read_names(root / "ImageSets" / "Context" / f"{split}.txt")
        super().__init__(root, names, tasks, VOC, how)

    def encoding_name(self) -> str:
        return f"PASCAL-Context, normals {self.normals_where}"

    def path(self, key: str, index: int) -> Path:
        name = self.names[index]
        if key == "image":
            return self.root / "JPEGImages" / f"{name}.jpg"
        if key == "semseg":
            own = self.root / "semseg" / "VOC12" / f"{name}.png"
            return own if own.exists() else self.root / "semseg" / "pascal-context" / f"{name}.png"
        return self.root / FOLDERS[key] / (name + (".mat" if key in ("human_parts", "edge") else ".png"))

    def label(self, task: str, index: int) -> NDArray[Any] | None:
        path = self.path(task, index)
        if task == "semseg":
            return class_numbers(open_numbers(path), path, (*range(len(VOC)), 255), "PASCAL VOC")
        if task == "human_parts":
            return human_parts(path)
        if task == "edge":
            return label_edges(_label_map(path))
        if task == "sal":
            return (open_grey(path) > 127).astype(np.uint8)
        normals = unit_vectors(path)
        if self.normals_where == "everywhere":
            return normals
        where = self.path("edge", index)
        classes = _label_map(where)
        if classes.shape != normals.shape[:2]:
            raise UserError(f"{where}: {classes.shape} pixels, but {path.name} has {normals.shape[:2]}")
        return np.where(np.isin(classes, self.shared_classes)[..., None], normals, np.float32(0))

    @cached_property
    def shared_classes(self) -> list[int]:
        """The numbers in a `LabelMap` of what NYUD-v2 knows too: the network of normals learned from that."""
        nyu, context = (_numbers(self.root / "json" / f"{name}_classes.json") for name in ("nyu", "context"))
        found = [number for name, number in context.items() if name in nyu and name != "unknown"]
        # A television has another name there.
        return sorted({*found, *([context["tvmonitor"]] if "tvmonitor" in context else [])})


def human_parts(path: Path) -> NDArray[np.uint8] | None:
    """The parts of persons (H, W), numbers in `PARTS`, of an annotation of PASCAL-Part; None without a person.

    An array of these numbers, as some keep it, is taken as it is.
    """
    annotation = load_mat(path, "anno")
    if annotation.dtype.names is None:
        numbers = class_numbers(annotation, path, (*range(len(PARTS)), 255), "six parts of persons")
        return numbers if (numbers != 255).any() else None
    try:
        parts = [
            (str(np.ravel(name)[0]), np.asarray(mask) != 0)
            for _, kind, _, parts in (tuple(one)[:4] for one in np.ravel(tuple(np.ravel(annotation)[0])[1]))
            if int(np.ravel(kind)[0]) == _PERSON
            for name, mask in (tuple(part)[:2] for part in np.ravel(parts))
        ]
    except (IndexError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not an annotation of PASCAL-Part ({reason(error)})") from None
    if not parts:
        return None
    found = np.zeros(parts[0][1].shape, np.uint8)
    for name, mask in parts:
        if name not in _PART_NUMBERS:
            raise UserError(f"{path}: a person has no part {name!r} in PASCAL-Part")
        if mask.ndim != 2 or mask.shape != found.shape:
            raise UserError(f"{path}: the mask of {name!r} is {mask.shape}, that of the first part {found.shape}")
        found[mask] = _PART_NUMBERS[name]
    return found


def pascal_context(
    root: str | Path,
    tasks: Sequence[str] | None = None,
    size: Sequence[int] | None = (512, 512),
    pad: bool = True,
    crop: Sequence[int] | None = None,
    zoom: float = 1.0,
    calibration: float = 0.1,
    seed: int = 0,
    workers: int = 0,
    cache_bytes: int = 0,
    normals_where: str = "shared",
) -> Splits:
    """The splits of PASCAL-Context in the layout of ASTMT (4,998 pictures for training, 5,105 for validation).

    `tasks` picks some of semseg, human_parts, normals, sal, edge. Pictures have many sizes: `size` (H, W) is that of
    all, with `pad` in their own proportions. `calibration` is the share of the training pictures that is held out.
    Samples are read from the files each time, by `workers` processes. Training sees mirror images, magnified up to
    `zoom`, and of these windows of `crop` (H, W).

    The normals are what a network said that had learned from rooms. As published they count where the picture shows
    what is known from rooms, by ``json/nyu_classes.json`` and ``json/context_classes.json`` under the root;
    ``normals_where = "everywhere"`` counts them all.
    """
    if not isinstance(root, str | Path) or not Path(root).is_dir():
        raise UserError(f"{root}: no such folder; put PASCAL_MT of ASTMT there (docs/dense-data.md)")
    if normals_where not in NORMALS_WHERE:
        raise UserError(f"[data] normals_where = {normals_where!r}: one of {', '.join(NORMALS_WHERE)}")
    folder, chosen = Path(root), chosen_tasks(tasks, TASKS)
    for task in chosen:
        if not (folder / FOLDERS[task]).is_dir():
            raise UserError(f"{folder / FOLDERS[task]}: no such folder; put its labels there or leave {task!r} out")
    how = how_to_read(size, pad and size is not None, crop, zoom, workers, cache_bytes)
    train = PascalContext(folder, "train", chosen, how, normals_where)
    if "normals" in chosen and normals_where == "shared":
        _ = train.shared_classes  # raises now, not when the first sample is read
    validation = PascalContext(folder, "val", chosen, how.of_validation(), normals_where)
    return hold_out(train, validation, calibration, seed)


def _label_map(path: Path) -> NDArray[np.int64]:
    raw = load_mat(path, "LabelMap")
    if raw.ndim != 2 or raw.dtype.kind not in "biuf":
        raise UserError(f"{path}: LabelMap is {raw.dtype} {raw.shape}; expected class numbers (H, W)")
    if not ((raw >= 0) & (raw <= _CONTEXT_CLASSES)).all() or not np.array_equal(raw, np.floor(raw)):
        raise UserError(f"{path}: LabelMap holds numbers that are none of the {_CONTEXT_CLASSES} classes")
    return raw.astype(np.int64)


def _numbers(path: Path) -> dict[str, int]:
    """Names and numbers of classes, from a JSON file."""
    check_plain(path)
    try:
        if path.stat().st_size > _LONGEST_JSON:
            raise ValueError("too long")
        found = json.loads(path.read_text())
        if not isinstance(found, dict) or not all(isinstance(number, int) for number in found.values()):
            raise ValueError("not an object of names and numbers")
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file, by which normals count; copy it there from the code of ASTMT, or say "
            '[data.args] normals_where = "everywhere"'
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a list of classes that can be read ({reason(error)})") from None
    return found
