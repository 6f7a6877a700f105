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
from PIL import Image

from mtlc.errors import UserError, reason
from mtlc.files import check_plain
from mtlc.runtime.pictures import FORMATS, check_pixels, eight_bit, unreadable

ORIENTATION = 0x0112  # the EXIF tag


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
    raw = _load_mat(path, "segmentation") if path.suffix == ".mat" else np.asarray(open_image(path))
    if raw.ndim != 2:
        raise UserError(f"{path}: shape {raw.shape}; a segmentation has one channel of class numbers")
    if raw.dtype.kind == "f" and not np.array_equal(raw, np.floor(raw)):
        raise UserError(f"{path}: holds fractions; a segmentation has class numbers")
    top = classes if encoding.shift else classes - 1
    if raw.size and (raw.max() > top or raw.min() < 0):
        raise UserError(
            f"{path}: class {int(raw.max() if raw.max() > top else raw.min())}, but {encoding.name} counts 0 to {top}"
        )
    if not encoding.shift:
        return raw.astype(np.uint8)
    return raw.astype(np.uint8) - np.uint8(1)  # 0, "unlabelled", wraps round to 255, "ignore"


def _depth(path: Path, encoding: Encoding, classes: int) -> NDArray[Any]:
    raw = _squeeze(_load_mat(path, "depth") if path.suffix == ".mat" else _load_npy(path), path).astype(np.float32)
    raw = np.where(np.isfinite(raw), raw, 0).astype(np.float32)
    if raw.size and (raw.max() > 100 or raw.min() < 0):
        raise UserError(f"{path}: values from {raw.min():g} to {raw.max():g} are not metres in a room; 0 is invalid")
    return raw


def _normals(path: Path, encoding: Encoding, classes: int) -> NDArray[Any]:
    if path.suffix == ".npy":
        raw = _load_npy(path)
        if raw.ndim == 3 and raw.shape[0] == 3 and raw.shape[2] != 3:
            raw = raw.transpose(1, 2, 0)
        if raw.dtype.kind != "f" or (raw.size and np.abs(raw).max() > 1.01):
            raise UserError(f"{path}: {raw.dtype} values beyond ±1 are not unit vectors")
        raw = raw.astype(np.float32)
    else:
        raw = open_rgb(path).astype(np.float32) * np.float32(2 / 255) - 1
    if raw.ndim != 3 or raw.shape[2] != 3:
        raise UserError(f"{path}: shape {raw.shape}; normals are (H, W, 3)")
    length = np.linalg.norm(raw, axis=2, keepdims=True)
    if path.suffix == ".npy" and np.all((np.abs(length - 1) < 1e-5) | (length == 0)):
        return raw
    # A grey pixel of a picture stands for "no normal": far from any unit vector.
    return np.where(length > 0.5, raw / np.maximum(length, 1e-6), 0).astype(np.float32)


def _edge(path: Path, encoding: Encoding, classes: int) -> NDArray[Any]:
    raw = _squeeze(_load_npy(path), path) if path.suffix == ".npy" else _open_grey(path)
    if path.suffix == ".npy" and raw.size and (raw.max() > 1 or raw.min() < 0):
        raise UserError(f"{path}: values from {raw.min():g} to {raw.max():g}; edges in a .npy are 0 or 1")
    return (raw > (0.5 if path.suffix == ".npy" else 127)).astype(np.uint8)


def _saliency(path: Path, encoding: Encoding, classes: int) -> NDArray[Any]:
    return (_open_grey(path) > 127).astype(np.uint8)


DECODE = {"semseg": _semseg, "depth": _depth, "normals": _normals, "edge": _edge, "sal": _saliency}


def resize_label(task: str, label: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """A label map (H, W[, C]) at another size: the nearest pixel; edges keep the maximum of the pixels that they
    cover.
    """
    height, width = label.shape[:2]
    if task == "edge" and size[0] <= height and size[1] <= width:
        pooled = torch.nn.functional.adaptive_max_pool2d(torch.from_numpy(label.astype(np.float32))[None], size)
        return pooled[0].numpy().astype(label.dtype)
    rows = ((np.arange(size[0]) + 0.5) * height / size[0]).astype(np.intp)
    columns = ((np.arange(size[1]) + 0.5) * width / size[1]).astype(np.intp)
    result: NDArray[Any] = label[rows[:, None], columns]
    return result


def open_rgb(path: Path) -> NDArray[Any]:
    """A picture as uint8 (H, W, 3), its pixels in the order in which the file has them: so do those of its labels.

    Raises `UserError` for a file that says by EXIF that it is shown turned: labels tell nothing of the kind.
    """
    image = open_image(path)
    turned = image.getexif().get(ORIENTATION, 1)
    if turned not in (0, 1):
        raise UserError(f"{path}: EXIF turns it (orientation {turned}), its labels not; save it upright, without EXIF")
    return np.asarray(eight_bit(image, str(path), image.format))


def _open_grey(path: Path) -> NDArray[Any]:
    """A mask as uint8 (H, W), 16 bits scaled to 8."""
    image = open_image(path)
    return np.asarray(eight_bit(image, str(path), image.format).convert("L"))


def open_image(path: Path) -> Image.Image:
    check_plain(path)
    try:
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            check_pixels(path, image.width, image.height)
            image.load()
            return image
    except FileNotFoundError:
        raise UserError(f"{path}: missing, though gt_sets lists it; copy it there or take it off the list") from None
    except UserError:
        raise
    except Exception as error:  # decoders of a damaged file raise whatever their code runs into
        raise UserError(f"{path}: not a picture that can be read ({unreadable(error)})") from error


def _load_npy(path: Path) -> NDArray[Any]:
    check_plain(path)
    try:
        result = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: missing, though gt_sets lists it; copy it there or take it off the list") from None
    except Exception as error:  # BadZipFile and the decoders' own, of a file that says it is a zip
        raise UserError(f"{path}: not a numpy array that can be read ({reason(error)})") from error
    if not isinstance(result, np.ndarray):
        raise UserError(f"{path}: an archive of arrays (.npz); a label is one array (.npy)")
    return result


def _load_mat(path: Path, key: str) -> NDArray[Any]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError(f"{path}: reading .mat files needs scipy: pip install scipy") from None
    check_plain(path)
    try:
        result: NDArray[Any] = loadmat(path)[key]
        return result
    except FileNotFoundError:
        raise UserError(f"{path}: missing, though gt_sets lists it; copy it there or take it off the list") from None
    except KeyError:
        raise UserError(f"{path}: has no array {key!r}") from None
    except Exception as error:  # scipy: NotImplementedError for MATLAB 7.3, and whatever its readers stumble over
        raise UserError(f"{path}: not a .mat file that can be read ({reason(error)})") from error


def _squeeze(array: NDArray[Any], path: Path) -> NDArray[Any]:
    """(H, W) of (H, W), (H, W, 1) or (1, H, W)."""
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[:, :, 0]
    if array.ndim != 2:
        raise UserError(f"{path}: shape {array.shape}; expected (H, W)")
    return array
