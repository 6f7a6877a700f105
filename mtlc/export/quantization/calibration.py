"""Samples for a bundle's inputs, checked before anything is computed from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mtlc.errors import UserError
from mtlc.evaluation.splits import Batch, batches
from mtlc.runtime.bundle.manifest import Manifest, TensorInfo


def checked_batches(
    manifest: Manifest, split: Any, batch_size: int, count: int, where: str = "[quantize] the calibration data"
) -> Iterator[tuple[Batch, dict[str, np.ndarray]]]:
    """The first `count` samples of a split with the bundle's inputs in them as arrays (N, …).

    Raises `UserError` naming `where` and the input for values that are not finite and for another layout or type than
    the bundle's: nothing that is computed from them would show that they were wrong.
    """
    for batch in batches(split, batch_size, count):
        inputs = {}
        for info in manifest.inputs:
            if info.name not in batch:
                raise UserError(f"{where}: a sample has no {info.name!r}; its keys: {', '.join(sorted(batch))}")
            inputs[info.name] = np.ascontiguousarray(batch[info.name].numpy())
            _check(info, inputs[info.name], where)
        yield batch, inputs


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
