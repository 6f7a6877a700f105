"""Writes tiny data sets in the layouts in which those of dense prediction are published."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

SIZE = (6, 8)
NYU_CLASSES = {"wall": 21, "person": 331, "unknown": 20}
CONTEXT_CLASSES = {"wall": 440, "person": 284, "sky": 360, "tvmonitor": 427, "unknown": 431}


def write_picture(path: Path, array: np.ndarray, **how: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **how)


def write_mat(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, content)


def annotation(objects: list[tuple[str, int, np.ndarray, list[tuple[str, np.ndarray]]]]) -> np.ndarray:
    """`anno` of PASCAL-Part: objects of a name, a number, a mask and named parts."""
    found = np.zeros((1, len(objects)), [("class", "O"), ("class_ind", "O"), ("mask", "O"), ("parts", "O")])
    for place, (name, number, mask, parts) in enumerate(objects):
        listed = np.zeros((1, len(parts)), [("part_name", "O"), ("mask", "O")])
        for row, (part, where) in enumerate(parts):
            listed[0, row] = (part, where.astype(np.uint8))
        found[0, place] = (name, number, mask.astype(np.uint8), listed if parts else np.zeros((0, 0)))
    anno = np.zeros((1, 1), [("imname", "O"), ("objects", "O")])
    anno[0, 0] = ("2008_000001", found)
    return anno


def write_pascal(root: Path, names: tuple[str, ...] = ("2008_000001", "2008_000002", "2008_000003")) -> Path:
    """PASCAL-Context as ASTMT published it: in the first picture a person, in the second a horse, in the third none."""
    height, width = SIZE
    everywhere = np.ones(SIZE, bool)
    rows, columns = np.mgrid[:height, :width]
    for index, name in enumerate(names):
        write_picture(root / "JPEGImages" / f"{name}.jpg", np.full((*SIZE, 3), 40 + index, np.uint8), quality=95)
        voc = np.where(columns < 4, 15, 0).astype(np.uint8)
        voc[0] = 255
        folder = "VOC12" if index % 2 == 0 else "pascal-context"
        paletted = Image.new("P", (width, height))
        paletted.putpalette([value for number in range(256) for value in (number, 255 - number, number // 2)])
        paletted.putdata(voc.flatten().tolist())
        (root / "semseg" / folder).mkdir(parents=True, exist_ok=True)
        paletted.save(root / "semseg" / folder / f"{name}.png")
        head, torso, hand = columns < 2, (columns >= 2) & (columns < 5), (columns == 5) & (rows == 3)
        person = ("person", 15, columns < 6, [("head", head), ("torso", torso), ("lhand", hand)])
        horse = ("horse", 13, columns > 5, [("head", columns > 5)])
        nobody = ("person", 15, everywhere, [])
        write_mat(
            root / "human_parts" / f"{name}.mat", {"anno": annotation([[horse, person], [horse], [nobody]][index % 3])}
        )
        context = np.where(columns < 4, 440, 360).astype(np.uint16)
        write_mat(root / "pascal-context" / "trainval" / f"{name}.mat", {"LabelMap": context})
        normals = np.full((*SIZE, 3), 128, np.uint8)
        normals[..., 0] = 255
        write_picture(root / "normals_distill" / f"{name}.png", normals)
        write_picture(root / "sal_distill" / f"{name}.png", np.where(rows < 2, 128, 127).astype(np.uint8))
    lists = root / "ImageSets" / "Context"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("".join(f"{name}\n" for name in names))
    (lists / "val.txt").write_text(f"{names[0]}\n")
    (root / "json").mkdir()
    (root / "json" / "nyu_classes.json").write_text(json.dumps(NYU_CLASSES))
    (root / "json" / "context_classes.json").write_text(json.dumps(CONTEXT_CLASSES))
    return root


LABEL_IDS = np.array([[7, 8, 11, 33], [0, 255, 33, 26], [4, 23, 24, 17]], np.uint8)
TRAIN_IDS = np.array([[0, 1, 2, 18], [255, 255, 18, 13], [255, 10, 11, 5]])
STORED = np.array([[0, 1, 257, 513], [2561, 65535, 25601, 300], [0, 0, 1025, 12801]], np.uint16)


def write_cityscapes(root: Path, layout: str = "labelIds", cameras: bool = True) -> Path:
    """Two pictures for training and one for validation, of 3 × 4 pixels.

    `layout` is labelIds, labelTrainIds or numbered.
    """
    for split, count in (("train", 2), ("val", 1)):
        for index in range(count):
            image = np.full((3, 4, 3), 10 * index, np.uint8)
            image[..., 0] = 200
            city, name = ("aachen", "bochum")[index], f"{('aachen', 'bochum')[index]}_00000{index}_000019"
            if layout == "numbered":
                write_picture(root / split / "image" / f"{index}.png", image)
                write_picture(root / split / "seg" / f"{index}.png", LABEL_IDS)
                write_picture(root / split / "depth" / f"{index}.png", STORED)
                continue
            write_picture(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", image)
            labels = LABEL_IDS if layout == "labelIds" else TRAIN_IDS.astype(np.uint8)
            write_picture(root / "gtFine" / split / city / f"{name}_gtFine_{layout}.png", labels)
            write_picture(root / "disparity" / split / city / f"{name}_disparity.png", STORED)
            if cameras:
                path = root / "camera" / split / city / f"{name}_camera.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"extrinsic": {"baseline": 0.2}, "intrinsic": {"fx": 2000.0, "fy": 1.0}}))
    return root
