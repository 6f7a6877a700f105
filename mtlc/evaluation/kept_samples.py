"""Keeps the samples of something that can be read only once: in memory, and from a size on in a temporary file.

The file has no name, so nobody else can read or change it, and it is gone with the process, however that ends. Samples
are read from it by their places, also by workers that were forked.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, overload

import numpy as np
from torch import Tensor

from mtlc.errors import UserError, reason

MOST_BYTES = 1 << 30
"""What samples may occupy in memory."""
_OTHER = 256
"""Bytes that stand for a value of another kind."""


class KeptSamples(Sequence[Any]):
    """Samples in the order in which they were appended."""

    def __init__(self) -> None:
        self._first: list[Any] = []
        self._bytes = 0
        self._file: BinaryIO | None = None
        self._places, self._sizes = array("q"), array("q")
        self._full = False

    @property
    def spilled(self) -> int:
        """How many samples are in the file."""
        return len(self._places)

    def append(self, sample: Any) -> None:
        """Keep one more. Raises `UserError` where the temporary folder has no room."""
        if not self._full:
            self._bytes += size_of(sample)
            self._full = self._bytes > MOST_BYTES and hasattr(os, "pread")
        if not self._full:
            self._first.append(sample)
            return
        content = pickle.dumps(sample, protocol=pickle.HIGHEST_PROTOCOL)
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="mtlc-samples-")  # noqa: SIM115  # as long as this object
            place = self._file.tell()
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            folder = tempfile.gettempdir()
            raise UserError(
                f"{folder}: cannot keep sample {len(self)} there ({reason(error)}); give a folder with room in the "
                "variable TMPDIR, or a map-style data set"
            ) from None
        self._places.append(place)
        self._sizes.append(len(content))

    def __len__(self) -> int:
        return len(self._first) + len(self._places)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(index)
        if place < len(self._first):
            return self._first[place]
        assert self._file is not None
        place -= len(self._first)
        content = os.pread(self._file.fileno(), self._sizes[place], self._places[place])
        return pickle.loads(content)  # what this process, or the one that it was forked from, has written


def size_of(sample: Any) -> int:
    """About how many bytes a sample occupies."""
    if isinstance(sample, Tensor):
        return sample.numel() * sample.element_size()
    if isinstance(sample, np.ndarray):
        return int(sample.nbytes)
    if isinstance(sample, bytes | bytearray | str):
        return len(sample)
    if isinstance(sample, Mapping):
        return sum(map(size_of, sample.values()))
    if isinstance(sample, tuple | list):
        return sum(map(size_of, sample))
    if hasattr(sample, "getbands") and hasattr(sample, "width"):  # a picture of Pillow's
        return int(sample.width * sample.height * len(sample.getbands()))
    return _OTHER
