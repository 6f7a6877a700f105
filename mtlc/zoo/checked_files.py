"""Reads pictures, arrays and .mat files of data sets that others made, and believes none before it has looked.

No code of a file's is run: arrays are read without pickle. A file that is missing, damaged or of another kind is a
`UserError` of one line that begins with its name.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mtlc.errors import UserError, reason
from mtlc.files import check_plain
from mtlc.runtime.pictures import FORMATS, MAX_PIXELS, check_pixels, eight_bit, unreadable

ORIENTATION = 0x0112  # the EXIF tag
_LONGEST_LIST = 64 << 20
"""The most bytes of a list of names that are read: some two million names."""
_MOST_NUMBERS = 4 * MAX_PIXELS
_UNIT = 0.01
"""How far a component of a unit vector may lie beyond 1: what rounding to half precision may make of it."""


@dataclass(frozen=True)
class Member:
    """A file within an archive, with its content: `name` is what messages call it, and ends with its suffix."""

    name: str
    data: bytes

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    def __str__(self) -> str:
        return self.name


File = Path | Member


def read_names(path: Path) -> list[str]:
    """The names that the list of a split holds, one a line. Raises `UserError` for one that leads elsewhere."""
    check_plain(path)
    what = "it lists the images of the split, one name a line without a suffix"
    try:
        if path.stat().st_size > _LONGEST_LIST:
            raise UserError(f"{path}: {path.stat().st_size >> 20} MB; {what}")
        names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else reason(error)
        raise UserError(f"{path}: {why}; {what}") from None
    if not names:
        raise UserError(f"{path}: empty; {what}")
    for name in names:
        if name != Path(name).name or "\\" in name or "\0" in name:
            raise UserError(f"{path}: {name!r} is not a plain file name")
    return names


def missing(path: Path) -> UserError:
    """That a file is not there, though a list says so."""
    return UserError(f"{path}: missing, though its split lists it; copy it there or take it off the list")


# --- Pictures ---------------------------------------------------------------------------------------------------------


def open_image(file: File) -> Image.Image:
    """A decoded picture, in the mode that it is stored in."""
    try:
        with _opened(file) as content, Image.open(content, formats=FORMATS) as image:
            check_pixels(Path(str(file)), image.width, image.height)
            image.load()
            return image
    except FileNotFoundError:
        raise missing(Path(str(file))) from None
    except UserError:
        raise
    except Exception as error:  # decoders of a damaged file raise whatever their code runs into
        raise UserError(f"{file}: not a picture that can be read ({unreadable(error)})") from error


def open_rgb(file: File) -> NDArray[Any]:
    """A picture as uint8 (H, W, 3), its pixels in the order in which the file has them: so do those of its labels.

    Raises `UserError` for a file that says by EXIF that it is shown turned: labels tell nothing of the kind.
    """
    return _rgb(open_image(file), file)


def _rgb(image: Image.Image, file: File) -> NDArray[Any]:
    turned = image.getexif().get(ORIENTATION, 1)
    if turned not in (0, 1):
        raise UserError(f"{file}: EXIF turns it (orientation {turned}), its labels not; save it upright, without EXIF")
    return np.asarray(eight_bit(image, str(file), image.format))


def open_grey(file: File) -> NDArray[Any]:
    """A mask as uint8 (H, W), 16 bits scaled to 8."""
    image = open_image(file)
    if image.mode == "L" and "transparency" not in image.info:  # as it comes out below, without two copies
        return np.asarray(image)
    return np.asarray(eight_bit(image, str(file), image.format).convert("L"))


def open_numbers(file: File) -> NDArray[Any]:
    """The numbers that a picture of one channel stores, (H, W): grey values of 8 or 16 bits, indices of a palette."""
    raw = np.asarray(open_image(file))
    if raw.ndim != 2:
        raise UserError(f"{file}: shape {raw.shape}; a map of numbers has one channel, is it a coloured copy?")
    return raw


# --- Arrays -----------------------------------------------------------------------------------------------------------


def load_npy(file: File) -> NDArray[Any]:
    """The array of a .npy file."""
    try:
        with _opened(file) as content:
            result = np.load(content, allow_pickle=False)
    except FileNotFoundError:
        raise missing(Path(str(file))) from None
    except UserError:
        raise
    except Exception as error:  # BadZipFile and the decoders' own, of a file that says it is a zip
        raise UserError(f"{file}: not a numpy array that can be read ({reason(error)})") from error
    if not isinstance(result, np.ndarray):
        raise UserError(f"{file}: an archive of arrays (.npz); a label is one array (.npy)")
    return result


def load_mat(file: File, key: str) -> NDArray[Any]:
    """The variable `key` of a MATLAB file."""
    try:
        from scipy.io import loadmat, whosmat
    except ImportError:
        raise UserError(f"{file}: reading .mat files needs scipy: pip install scipy") from None
    try:
        with _opened(file) as content:
            # Compressed, a few kilobytes may stand for any size: that of the array is looked at first.
            for name, shape, _ in whosmat(content):
                if name == key and math.prod(shape) > _MOST_NUMBERS:
                    raise UserError(f"{file}: {key!r} is {shape}; at most {_MOST_NUMBERS} numbers are read")
            content.seek(0)
            result: NDArray[Any] = loadmat(content, variable_names=[key])[key]
            return result
    except FileNotFoundError:
        raise missing(Path(str(file))) from None
    except UserError:
        raise
    except KeyError:
        raise UserError(f"{file}: has no array {key!r}") from None
    except Exception as error:  # scipy: NotImplementedError for MATLAB 7.3, and whatever its readers stumble over
        raise UserError(f"{file}: not a .mat file that can be read ({reason(error)})") from error


def one_channel(array: NDArray[Any], file: File) -> NDArray[Any]:
    """(H, W) of (H, W), (H, W, 1) or (1, H, W)."""
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[:, :, 0]
    if array.ndim != 2:
        raise UserError(f"{file}: shape {array.shape}; expected (H, W)")
    return array


# --- What the numbers mean --------------------------------------------------------------------------------------------


def class_numbers(raw: NDArray[Any], file: File, known: Iterable[int], what: str) -> NDArray[np.uint8]:
    """Class numbers (H, W) as uint8. Raises `UserError` for a number that is none of `known`, those of `what`."""
    if raw.ndim != 2:
        raise UserError(f"{file}: shape {raw.shape}; a segmentation has one channel of class numbers")
    if raw.dtype.kind not in "biuf":
        raise UserError(f"{file}: holds {raw.dtype}; a segmentation has class numbers")
    if raw.dtype.kind == "f" and not np.array_equal(raw, np.floor(raw)):
        raise UserError(f"{file}: holds fractions; a segmentation has class numbers")
    allowed = sorted(known)
    # Of bytes counting tells it in a tenth of the time that sorting takes.
    there = np.flatnonzero(np.bincount(raw.ravel(), minlength=1)) if raw.dtype == np.uint8 else np.unique(raw)
    strange = np.setdiff1d(there, allowed)
    if len(strange):
        steps = len(allowed) - 1
        numbers = f"{allowed[0]} to {allowed[-1]}" if allowed[-1] - allowed[0] == steps else _listed(allowed)
        worst = strange[0] if strange[0] < allowed[0] else strange[-1]
        raise UserError(f"{file}: class {int(worst)}, but {what} counts {numbers}")
    return raw.astype(np.uint8)


def _listed(numbers: list[int]) -> str:
    """``0 to 20 or 255``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return " or ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def metres(raw: NDArray[Any], file: File, most: float) -> NDArray[np.float32]:
    """Depths (H, W) in metres, float32; what is not finite becomes 0, which is no depth."""
    if raw.dtype.kind not in "biuf":
        raise UserError(f"{file}: holds {raw.dtype}; a depth has numbers")
    depth = one_channel(raw, file).astype(np.float32)
    depth = np.where(np.isfinite(depth), depth, 0).astype(np.float32)
    if depth.size and (depth.max() > most or depth.min() < 0):
        raise UserError(
            f"{file}: values from {depth.min():g} to {depth.max():g} are not metres from 0 to {most:g}; 0 is invalid"
        )
    return depth


def unit_vectors(file: File) -> NDArray[np.float32]:
    """Normals (H, W, 3) of length 1, or 0 where there is none: of an array, or of a picture by n = 2·pixel/255 − 1."""
    if file.suffix == ".npy":
        raw = load_npy(file)
        if raw.ndim == 3 and raw.shape[0] == 3 and raw.shape[2] != 3:
            raw = raw.transpose(1, 2, 0)
        if raw.dtype.kind != "f" or (raw.size and np.abs(raw).max() > 1 + _UNIT):
            raise UserError(f"{file}: {raw.dtype} values beyond ±1 are not unit vectors")
        raw = raw.astype(np.float32)
    else:
        image = open_image(file)
        if image.mode != "RGB":
            raise UserError(f"{file}: a picture of mode {image.mode}; normals are x, y, z as red, green, blue")
        raw = _rgb(image, file).astype(np.float32) * np.float32(2 / 255) - 1
    if raw.ndim != 3 or raw.shape[2] != 3:
        raise UserError(f"{file}: shape {raw.shape}; normals are (H, W, 3)")
    length = np.linalg.norm(raw, axis=2, keepdims=True)
    if file.suffix == ".npy" and np.all((np.abs(length - 1) < 1e-5) | (length == 0)):
        return raw
    # A grey pixel of a picture stands for "no normal": far from any unit vector.
    return np.where(length > 0.5, raw / np.maximum(length, 1e-6), 0).astype(np.float32)


def _opened(file: File) -> BinaryIO | io.BytesIO:
    if isinstance(file, Member):
        return io.BytesIO(file.data)
    check_plain(file)
    return file.open("rb")
