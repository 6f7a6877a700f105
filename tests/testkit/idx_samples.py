"""Writes small files in the format of MNIST: pictures whose every pixel tells which picture it is."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np


def idx(array: np.ndarray) -> bytes:
    """The array of unsigned bytes as an idx file."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def marked_pictures(count: int, first: int) -> np.ndarray:
    """Pictures (count, 28, 28): all pixels of picture i are `first` + i."""
    return np.broadcast_to((first + np.arange(count, dtype=np.uint8))[:, None, None], (count, 28, 28))


def write_set(folder: Path, train: int = 40, test: int = 12, packed: bool = False, first: int = 1) -> Path:
    """The four files of a data set of ten classes. Picture i has the class i modulo 10; test pictures go on after
    those of training, so that every value of a pixel, from `first` on, is one picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part, count, start in (("train", train, first), ("t10k", test, first + train)):
        files = {
            f"{part}-images-idx3-ubyte": idx(marked_pictures(count, start)),
            f"{part}-labels-idx1-ubyte": idx(np.arange(count) % 10),
        }
        for name, content in files.items():
            path = folder / (name + ".gz" if packed else name)
            path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    return folder
