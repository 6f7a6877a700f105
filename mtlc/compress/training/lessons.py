"""Keeps what a teacher says of every training sample, where no sample changes from epoch to epoch.

A teacher is as large as the network before its compression: asked at every step, it costs more than the student's own
step once the student is small. Asked once of every sample, in order and in batches of one size, it gives the same
numbers to a training that went through and to one that was cut off.

Some data sets make a sample anew only now and then. So each one's inputs leave a mark, and of a batch with other marks
nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlc.evaluation.splits import fetch

_BATCH = 128
_TRIED = 64  # samples that are read twice: one that is made anew each time would differ somewhere among them
_ALONE = 2  # of these samples are asked about without the others, too
_APART = 0.02  # of the largest value: what bfloat16 may make of it in batches of two sizes
_MEGABYTES = 512
_LOOKED_AT = 4096  # values of a sample that its mark is of, at equal distances

Said = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
"""A teacher's outputs by task, and what its layers read by layer."""


class Lessons:
    """A teacher's outputs and features of all samples of `data`.

    `names` are the keys of the network's inputs, `move` brings one to where the network is, `ask` runs the teacher.
    """

    def __init__(
        self, data: Any, names: Sequence[str], move: Callable[[Tensor], Tensor], ask: Callable[..., Said]
    ) -> None:
        parts: list[Said] = []
        marks: list[Tensor] = []
        for start in range(0, len(data), _BATCH):
            batch = fetch(data, list(range(start, min(start + _BATCH, len(data)))))
            inputs = [batch[name] for name in names]
            parts.append(ask(*map(move, inputs)))
            marks.append(_marks(inputs))
        self._outputs, self._features = (
            {key: torch.cat([part[side][key] for part in parts]) for key in parts[0][side]} for side in (0, 1)
        )
        self._marks = torch.cat(marks)

    def of(self, indices: Sequence[int], inputs: Sequence[Tensor]) -> Said | None:
        """What the teacher said of the samples at `indices`; None if their `inputs` are not those that it was asked
        about.
        """
        rows = torch.as_tensor(indices)
        if not torch.equal(_marks(inputs), self._marks[rows]):
            return None
        outputs, features = (
            {key: value[rows.to(value.device)] for key, value in side.items()}
            for side in (self._outputs, self._features)
        )
        return outputs, features


def lessons(
    data: Any, names: Sequence[str], move: Callable[[Tensor], Tensor], ask: Callable[..., Said]
) -> Lessons | None:
    """The `Lessons` of a data set, with the arguments of that class.

    None where they would not fit in `_MEGABYTES`, where samples change when read again, and where what the teacher says
    of a sample depends on the others of its batch.
    """
    # A few tell how large what is said is: many large pictures at once could be too much only to find that out.
    one = fetch(data, list(range(min(_ALONE, len(data)))))
    if _bytes(ask(*(move(one[name]) for name in names))) / min(_ALONE, len(data)) * len(data) > _MEGABYTES << 20:
        return None
    few = list(range(min(_TRIED, len(data))))
    first, again = fetch(data, few), fetch(data, few)
    if first.keys() != again.keys() or not all(_equal(first[key], again[key]) for key in first):
        return None
    inputs = [first[name] for name in names]
    said, alone = ask(*map(move, inputs)), ask(*(move(value[:_ALONE]) for value in inputs))
    for side, other in zip(said, alone, strict=True):
        if side.keys() != other.keys() or not all(_dealt_out(side[key], other[key], len(few)) for key in side):
            return None
    size = _bytes(said) / len(few)
    return None if size * len(data) > _MEGABYTES << 20 else Lessons(data, names, move, ask)


def _bytes(said: Said) -> int:
    return sum(value.numel() * value.element_size() for side in said for value in side.values())


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same; NaN, which stands where there is no label, is the same as NaN."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool(torch.equal(one, other) or ((one == other) | (one.isnan() & other.isnan())).all())


def _dealt_out(together: Tensor, alone: Tensor, count: int) -> bool:
    """Whether what was said of `count` samples is a row for each, which for the first ones is what was said of them
    alone.
    """
    if together.shape[:1] != (count,) or together[:_ALONE].shape != alone.shape:
        return False
    if not alone.numel():
        return True
    apart = (together[:_ALONE].float() - alone.float()).abs().max()
    return bool(apart <= _APART * together.float().abs().max())


def _marks(inputs: Sequence[Tensor]) -> Tensor:
    """A number for each sample and input, (N, inputs) int64, which other values give another of."""
    found = []
    for value in inputs:
        flat = value.detach().cpu().reshape(len(value), -1)
        looked_at = flat[:, :: max(1, flat.shape[1] // _LOOKED_AT)].double().view(torch.int64)
        # Whole numbers, which add up to the same in any order; a factor a place, so that a mirrored sample differs.
        factors = torch.randint(2**62, looked_at.shape[1:], generator=torch.Generator().manual_seed(0))
        found.append((looked_at * (2 * factors + 1)).sum(1))
    return torch.stack(found, 1)
