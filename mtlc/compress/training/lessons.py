"""Keeps what a teacher says of every training sample, where no sample changes from epoch to epoch.

A teacher is as large as the network before its compression: asked at every step, it costs more than the student's own
step once the student is small. Asked once of every sample, in order and in batches of one size, it gives the same
numbers to a training that went through and to one that was cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlc.evaluation.splits import Batch, fetch

_BATCH = 128
_TRIED = 64  # samples that are read twice: one that is made anew each time would differ somewhere among them
_MEGABYTES = 512

Said = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
"""A teacher's outputs by task, and what its layers read by layer."""


class Lessons:
    """A teacher's outputs and features of all samples of `data`; `ask` gives those of a batch's inputs."""

    def __init__(self, data: Any, inputs: Callable[[Batch], Sequence[Tensor]], ask: Callable[..., Said]) -> None:
        parts: list[Said] = []
        for start in range(0, len(data), _BATCH):
            batch = fetch(data, list(range(start, min(start + _BATCH, len(data)))))
            parts.append(ask(*inputs(batch)))
        self._outputs, self._features = (
            {key: torch.cat([part[side][key] for part in parts]) for key in parts[0][side]} for side in (0, 1)
        )

    def of(self, indices: Sequence[int]) -> Said:
        """What the teacher said of the samples at `indices`."""
        rows = torch.as_tensor(indices)
        outputs, features = (
            {key: value[rows.to(value.device)] for key, value in side.items()}
            for side in (self._outputs, self._features)
        )
        return outputs, features


def lessons(data: Any, inputs: Callable[[Batch], Sequence[Tensor]], ask: Callable[..., Said]) -> Lessons | None:
    """The `Lessons` of a data set; None where they would not fit in `_MEGABYTES`, or samples change when read again."""
    few = list(range(min(_TRIED, len(data))))
    first, again = fetch(data, few), fetch(data, few)
    if first.keys() != again.keys() or not all(torch.equal(first[key], again[key]) for key in first):
        return None
    said = ask(*inputs(first))
    if any(value.shape[:1] != (len(few),) for side in said for value in side.values()):
        return None  # a tensor of the batch as a whole cannot be dealt out to samples
    size = sum(value.numel() * value.element_size() for side in said for value in side.values()) / len(few)
    return None if size * len(data) > _MEGABYTES << 20 else Lessons(data, inputs, ask)
