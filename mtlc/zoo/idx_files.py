"""Reads idx files, the format of MNIST, plain or compressed by gzip, and believes no header before it has the bytes.

    0, 0, type (8: unsigned bytes), number of axes │ size of each axis, 32 bits, big-endian │ the bytes, last axis first

The format is described on the page of MNIST (LeCun, Cortes, Burges). A folder of a data set holds four of them:
``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, and the same with ``t10k``, each with or without ``.gz``.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from mtlc.errors import UserError, reason
from mtlc.files import check_plain

SIDE = 28
"""Height and width of a picture, in pixels."""
CLASSES = 10
MOST = 1 << 18
"""The most entries of a file: 205 MB of pictures. The largest set of ten classes known to us has 240,000."""
_UNSIGNED_BYTE = 8
_GZIP = b"\x1f\x8b"
_AT_ONCE = 1 << 20
_KINDS = {"images": ("idx3", (SIDE, SIDE)), "labels": ("idx1", ())}


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures (n, 28, 28), uint8, 0 is background; their classes (n,), uint8, 0 to 9."""

    pictures: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.labels)


def read_labelled(folder: Path, part: str) -> LabelledPictures:
    """The pictures and classes of ``part``, "train" or "t10k", in `folder`.

    Raises `UserError` naming the file that is missing, damaged, of other sizes, or that does not fit its partner.
    """
    paths = {kind: _path(folder, part, kind) for kind in _KINDS}
    pictures = read_idx(paths["images"], _KINDS["images"][1])
    labels = read_idx(paths["labels"], _KINDS["labels"][1])
    if len(pictures) != len(labels):
        raise UserError(
            f"{paths['labels']}: {len(labels)} labels, but {paths['images'].name} has {len(pictures)} pictures; "
            "get both files from one data set"
        )
    if labels.max() >= CLASSES:
        raise UserError(
            f"{paths['labels']}: label {labels.max()} at {int(labels.argmax())}; "
            f"classes are 0 to {CLASSES - 1}: is it of another data set?"
        )
    return LabelledPictures(pictures, labels)


def folder_with_idx_files(folders: Sequence[Path]) -> Path | None:
    """The first of the folders that holds one of the four files; `None` if there is none."""
    return next((folder for folder in folders if any(path.exists() for path in _all_names(folder))), None)


def read_idx(path: Path, item: tuple[int, ...]) -> NDArray[np.uint8]:
    """The entries of an idx file of unsigned bytes, (n, *item), with n from 1 to `MOST`; read-only.

    What is kept in memory grows with what the file really holds, and ends where its header says.
    """
    check_plain(path)
    try:
        with path.open("rb") as file:
            if file.read(2) != _GZIP:
                file.seek(0)
                return _entries(file, path, item)
            file.seek(0)
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _entries(unpacked, path, item)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged ({error}); get the file again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None


def _entries(file: BinaryIO | gzip.GzipFile, path: Path, item: tuple[int, ...]) -> NDArray[np.uint8]:
    axes = 1 + len(item)
    header = _read(file, 4 + 4 * axes)
    if header[:2] != b"\0\0" or len(header) < 4:
        raise UserError(f"{path}: not an idx file, which begins with two bytes of 0; get the file again")
    if header[2] != _UNSIGNED_BYTE:
        raise UserError(f"{path}: an idx file of type {header[2]}; only unsigned bytes, type 8, are read")
    if header[3] != axes:
        raise UserError(f"{path}: an idx file of {header[3]} axes, expected {axes}; are pictures and labels swapped?")
    if len(header) < 4 + 4 * axes:
        raise UserError(f"{path}: truncated within its header; get the file again")
    count, *sizes = struct.unpack(f">{axes}I", header[4:])
    if tuple(sizes) != item:
        raise UserError(f"{path}: entries of {'×'.join(map(str, sizes))}, expected {'×'.join(map(str, item))}")
    if not 1 <= count <= MOST:
        raise UserError(f"{path}: {count} entries; 1 to {MOST} are read")
    expected = count * int(np.prod(item, dtype=np.int64))
    body = _read(file, expected)
    if len(body) < expected:
        raise UserError(f"{path}: truncated, {len(body)} of {expected} bytes after its header; get the file again")
    if file.read(1):  # with gzip this also compares the checksum
        raise UserError(f"{path}: longer than its header says, {expected} bytes; get the file again")
    array = np.frombuffer(body, np.uint8).reshape(count, *item)
    array.flags.writeable = False
    return array


def _read(file: BinaryIO | gzip.GzipFile, count: int) -> bytearray:
    """Up to `count` bytes: fewer only where the file ends."""
    read = bytearray()
    while len(read) < count:
        part = file.read(min(_AT_ONCE, count - len(read)))
        if not part:
            break
        read += part
    return read


def _path(folder: Path, part: str, kind: str) -> Path:
    names = _names(folder, part, kind)
    found = next((path for path in names if path.exists()), None)
    if found is None:
        raise UserError(f"{names[0]}: no such file, nor {names[0].name}.gz; the other files of the data set are there")
    return found


def _names(folder: Path, part: str, kind: str) -> list[Path]:
    """What the file may be called: as it is published, and as some unpack it."""
    idx = _KINDS[kind][0]
    stems = (f"{part}-{kind}-{idx}-ubyte", f"{part}-{kind}.{idx}-ubyte")
    return [folder / f"{stem}{suffix}" for stem in stems for suffix in ("", ".gz")]


def _all_names(folder: Path) -> list[Path]:
    return [path for part in ("train", "t10k") for kind in _KINDS for path in _names(folder, part, kind)]
