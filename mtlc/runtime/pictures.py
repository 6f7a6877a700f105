"""Draws task outputs as pictures, for people to look at."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from mtlc.errors import UserError, reason
from mtlc.extras import missing_extra
from mtlc.files import check_plain

# Dark blue over green to light yellow at even steps of lightness, so that equal differences look equal.
_ANCHORS = np.array(
    [
        (22, 14, 60), (30, 40, 102), (26, 70, 122), (22, 100, 126), (36, 130, 122),
        (74, 158, 106), (134, 182, 84), (198, 204, 86), (250, 228, 140),
    ],
    np.float32,
)  # fmt: skip
_PALETTE = np.array(
    [
        (68, 68, 68), (214, 96, 77), (67, 147, 195), (120, 171, 68), (230, 171, 2), (128, 97, 171), (64, 178, 162),
        (166, 86, 40), (231, 138, 195), (150, 150, 150), (244, 165, 130), (146, 197, 222), (190, 222, 150),
        (255, 222, 120), (196, 178, 222), (160, 224, 214),
    ],
    np.uint8,
)  # fmt: skip

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
MAX_PIXELS = 64 << 20
"""The most that `read_image` takes: 8192 × 8192, for which a decoder takes 4 bytes a pixel and the array 3."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What `read_image` decodes. Pillow knows many more, some of which it hands to other programs."""


def picture(
    kind: str,
    array: np.ndarray,
    low: float | None = None,
    high: float | None = None,
    logits: bool | None = None,
) -> np.ndarray:
    """One sample's output as a picture, uint8 (H, W, 3).

    `array` is (C, H, W) or (1, C, H, W), and (H, W) for kinds of one channel or for labels that are class numbers.

    - ``labels``: the class of the largest score, in a palette of 16 colours that repeats.
    - ``scalar``: the first channel from `low` to `high` (the 2nd and 98th percentile if None) from dark blue to yellow;
      what is not a number is black.
    - ``normals``: x, y, z of the unit vector from −1…1 to 0…255 red, green, blue.
    - ``probability``: 0…1 to black…white; `logits` says that a sigmoid is due (None: if a value is outside 0…1).
    - ``unknown``: as ``scalar``.

    Detections are drawn on the network's input instead: `draw_boxes`.
    """
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.size == 0:
        raise UserError(f"a picture is made of an array (C, H, W), not {array.shape}")
    if kind == "labels":
        classes = array[0] if len(array) == 1 else array.argmax(axis=0)
        result: np.ndarray = _PALETTE[classes.astype(np.int64) % len(_PALETTE)]
        return result
    array = array.astype(np.float32)
    if kind == "normals":
        if len(array) != 3:
            raise UserError(f"normals have 3 channels, not {len(array)}")
        length = np.sqrt((array**2).sum(axis=0, keepdims=True))
        unit = array / np.maximum(length, 1e-12)
        return _to_uint8((unit.transpose(1, 2, 0) + 1) / 2)
    if kind == "probability":
        grey = array[0]
        if logits if logits is not None else bool((grey < 0).any() or (grey > 1).any()):
            grey = 0.5 * (1 + np.tanh(0.5 * grey))
        return np.repeat(_to_uint8(grey)[..., None], 3, axis=-1)
    if kind in ("scalar", "unknown"):
        return _colormap(array[0], low, high)
    raise UserError(f"no picture of kind {kind!r}: labels, scalar, normals, probability or unknown")


def draw_boxes(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """A copy of a picture, uint8 (H, W, 3), with the outlines of boxes (M, 5 or more) in the colours of their classes.

    Rows are x1, y1, x2, y2, class in pixels; those of class -1 are nothing. The last row is drawn first, so that the
    best detection is on top.
    """
    shown = np.array(image)
    height, width = shown.shape[:2]
    for row in boxes[boxes[:, 4] >= 0][::-1]:
        x1, y1, x2, y2 = (int(value) for value in np.rint(row[:4]))
        left, top = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
        right, bottom = min(max(x2 - 1, left), width - 1), min(max(y2 - 1, top), height - 1)
        colour = _PALETTE[(int(row[4]) + 1) % len(_PALETTE)]  # the first colour is too dark to be seen
        shown[top : bottom + 1, [left, right]] = colour
        shown[[top, bottom], left : right + 1] = colour
    return shown


def read_image(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a picture file as uint8 (H, W, 3), RGB, upright as EXIF says; resized to `size` (H, W) if given.

    Grey values of 16 bit are scaled, so that 65535 becomes 255. Raises `UserError` for a picture of more than
    `MAX_PIXELS`, before it is decoded, for a file that is none of `FORMATS` or is damaged, and for one that has no such
    pixels (`eight_bit`).
    """
    image_module = _pillow()
    check_plain(Path(path))
    try:
        # By its path Pillow maps an uncompressed TIFF into memory, and scrambles one that EXIF turns on its side.
        with open(path, "rb") as file, image_module.open(file, formats=FORMATS) as image:
            check_pixels(Path(path), image.width, image.height)
            from PIL import ImageOps

            kind = image.format
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # this, and leaving RGB as it is, each spare a copy
            upright = image if image.mode == "RGB" and not image.info else eight_bit(image, str(Path(path)), kind)
            if size is not None and (upright.height, upright.width) != size:
                upright = upright.resize((size[1], size[0]), image_module.Resampling.BILINEAR)
            return np.array(upright)
    except UserError:
        raise
    except Exception as error:  # decoders of a damaged file raise whatever their code runs into
        raise UserError(f"{Path(path)}: not a picture that can be read ({unreadable(error)})") from error


def check_pixels(path: Path, width: int, height: int) -> None:
    """Raise `UserError` for a picture of more than `MAX_PIXELS`."""
    if width * height > MAX_PIXELS:
        raise UserError(f"{path}: {width} × {height} pixels, more than the {MAX_PIXELS} that are read: make it smaller")


def unreadable(error: Exception) -> str:
    """Why a file could not be read: the system's words, or the library's."""
    if type(error).__name__ == "UnidentifiedImageError":  # Pillow's words show the file object and not the reason
        return f"it is none of {', '.join(FORMATS)}"
    return error.strerror if isinstance(error, OSError) and error.strerror else reason(error)


def eight_bit(image: Any, name: str, kind: str | None = None) -> Any:
    """A Pillow image of any mode as one of mode RGB; `kind` is the format of its file, if it had one.

    16 bits are scaled to 8, palettes looked up, a CMYK's ICC profile is followed. Raises `UserError` with the file's
    `name` where a pixel has no such value: floats and 32-bit integers, whose white nobody knows, and transparency,
    behind which there is no picture.
    """
    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and kind == "PNG"):  # the latter in older versions of Pillow
        grey = np.asarray(image)
        if (grey == image.info.get("transparency", -1)).any():
            raise _transparent(name)
        return _pillow().fromarray(np.rint(grey.astype(np.float32) / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        what = "floats" if image.mode == "F" else "integers of more than 16 bit"
        raise UserError(
            f"{name}: its pixels are {what}, of which nobody knows what is white; save it with 8 or 16 bit a channel"
        )
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise _transparent(name)
    if image.mode == "CMYK" and image.info.get("icc_profile"):
        return _from_cmyk(image, name)
    return image.convert("RGB")


def _transparent(name: str) -> UserError:
    return UserError(f"{name}: has transparent pixels, which have no colour; save it on an opaque background")


def _from_cmyk(image: Any, name: str) -> Any:
    """Inks to RGB by the profile in the file, which says what colours they make."""
    from PIL import ImageCms

    try:
        profile = io.BytesIO(image.info["icc_profile"])
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, ImportError, OSError, ValueError, TypeError) as error:
        raise UserError(f"{name}: the colour profile of its inks cannot be used; save it as RGB") from error


def write_png(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Write uint8 (H, W, 3) or (H, W) as a PNG file."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise UserError(f"a picture is uint8 (H, W, 3) or (H, W), not {image.dtype} {image.shape}")
    try:
        _pillow().fromarray(image).save(path, format="PNG")
    except OSError as error:
        raise UserError(f"{Path(path)}: cannot be written ({error.strerror or error})") from error


def _colormap(values: np.ndarray, low: float | None, high: float | None) -> np.ndarray:
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros((*values.shape, 3), np.uint8)
    bottom = float(np.percentile(values[finite], 2)) if low is None else low
    top = float(np.percentile(values[finite], 98)) if high is None else high
    share = np.clip((np.where(finite, values, bottom) - bottom) / max(top - bottom, 1e-12), 0, 1) * (len(_ANCHORS) - 1)
    index = np.minimum(share.astype(np.int64), len(_ANCHORS) - 2)
    fraction = (share - index)[..., None]
    colours = _ANCHORS[index] * (1 - fraction) + _ANCHORS[index + 1] * fraction
    return np.where(finite[..., None], np.rint(colours), 0).astype(np.uint8)


def _to_uint8(share: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.rint(np.clip(np.nan_to_num(share), 0, 1) * 255).astype(np.uint8)
    return result


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("PIL") from None
    return Image
