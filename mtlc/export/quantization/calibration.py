"""Samples for a bundle's inputs, checked before anything is computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np

from mtlc.errors import UserError
from mtlc.evaluation.splits import Batch, batches, fetch
from mtlc.runtime.bundle.manifest import Manifest, TensorInfo

CALIBRATION = "[quantize] the calibration data"
KEPT_BYTES = 1 << 30
"""What the batches of a split may occupy that are asked for again and again; the others are read each time."""
Checked = tuple[Batch, dict[str, np.ndarray]]


class CheckedBatches(Sequence[Checked]):
    """The batches of `checked_batches`, to be gone through more than once.

    All are read and checked when this is made. The first ones are kept, within `KEPT_BYTES`.
    """

    def __init__(self, manifest: Manifest, split: Any, batch_size: int, count: int, where: str) -> None:
        self._asked = manifest, split, batch_size, where
        self._count = min(count, len(split))
        self._kept: list[Checked] = []
        size, full = 0, False
        for batch, inputs in checked_batches(manifest, split, batch_size, count, where):
            size += sum(value.numel() * value.element_size() for value in batch.values())
            full = full or size > KEPT_BYTES
            if not full:
                self._kept.append((batch, inputs))

    @property
    def samples(self) -> int:
        """How many samples all batches have."""
        return self._count

    def __len__(self) -> int:
        return -(-self._count // self._asked[2])

    @overload
    def __getitem__(self, index: int) -> Checked: ...
    @overload
    def __getitem__(self, index: slice) -> list[Checked]: ...
    def __getitem__(self, index: int | slice) -> Checked | list[Checked]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(index)
        return self._kept[place] if place < len(self._kept) else self._read(place)

    def _read(self, place: int) -> Checked:
        manifest, split, size, where = self._asked
        batch = fetch(split, range(place * size, min((place + 1) * size, self._count)))
        return batch, _inputs(manifest, batch, where)


def checked_batches(
    manifest: Manifest, split: Any, batch_size: int, count: int, where: str = CALIBRATION
) -> Iterator[Checked]:
    """The first `count` samples of a split with the bundle's inputs in them as arrays (N, …).

    Raises `UserError` naming `where` and the input for values that are not finite and for another layout or type than
    the bundle's: nothing that is computed from them would show that they were wrong.
    """
    for batch in batches(split, batch_size, count):
        yield batch, _inputs(manifest, batch, where)


def _inputs(manifest: Manifest, batch: Batch, where: str) -> dict[str, np.ndarray]:
    inputs = {}
    for info in manifest.inputs:
        if info.name not in batch:
            raise UserError(f"{where}: a sample has no {info.name!r}; its keys: {', '.join(sorted(batch))}")
        inputs[info.name] = np.ascontiguousarray(batch[info.name].numpy())
        _check(info, inputs[info.name], where)
    return inputs


def _check(info: TensorInfo, array: np.ndarray, data: str) -> None:
    where = f"{data}: {info.name!r}"
    expected = info.shape[1:]
    shape = array.shape[1:]
    if array.dtype != np.dtype(info.dtype):
        raise UserError(f"{where} is {array.dtype}, the bundle takes {info.dtype}")
    if len(shape) != len(expected) or any(isinstance(e, int) and e != s for s, e in zip(shape, expected, strict=True)):
        hint = ""
        if len(shape) == len(expected) == 3 and shape[2] == expected[0]:
            hint = ": the channels are last; the bundle takes them first (C, H, W)"
        raise UserError(f"{where} has samples of shape {shape}, the bundle takes {expected}{hint}")
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise UserError(f"{where} holds NaN or infinity: remove those samples")
