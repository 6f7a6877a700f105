"""Stacks samples to a batch, also where some of them have no label of a task.

A label that some samples of a batch lack, or give as None, is stacked with zeros in their rows, and beside it stands
which rows are real: ``"depth"`` (N, …) and ``"depth:labelled"`` (N,) bool. A label that no sample has is not in the
batch. Where all samples have it there is no second entry. A data set with a ``batch`` method of its own may give
batches of the same form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from mtlc.errors import UserError

_SUFFIX = ":labelled"


def labelled_key(key: str) -> str:
    """The entry of a batch that says which samples have the label `key`."""
    return key + _SUFFIX


def has_label(batch: Mapping[str, Tensor], key: str) -> Tensor | None:
    """(N,) bool: which samples of a batch have the label `key`, which is in the batch; None where all have it.

    Raises `UserError` for an entry of another type or shape.
    """
    mask = batch.get(labelled_key(key))
    if mask is None:
        return None
    if mask.dtype != torch.bool or mask.shape != batch[key].shape[:1]:
        kind, shape = str(mask.dtype).removeprefix("torch."), tuple(mask.shape)
        raise UserError(
            f"[data] {labelled_key(key)!r} is {kind} {shape}: give a bool for each of the {len(batch[key])} samples"
        )
    return mask


def check_inputs(batch: Mapping[str, Tensor], inputs: Sequence[str], where: str, indices: Sequence[int]) -> None:
    """Raise `UserError` naming the first sample that lacks one of the network's `inputs`: only labels may."""
    for name in inputs:
        mask = has_label(batch, name) if name in batch else torch.zeros(len(indices), dtype=torch.bool)
        if mask is not None and not bool(mask.all()):
            index = indices[int((~mask).nonzero()[0])]
            raise UserError(f"[data] {where} sample {index}: it has no {name!r}, which the network takes")


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """The samples as a batch. Boxes (M, 5) of several M get rows of class -1, which are nothing.

    What collates to no tensor, such as a file name, is left out. Raises what torch's collation raises.
    """
    keys = dict.fromkeys(key for sample in samples for key in sample)
    rows = {key: [row for row, sample in enumerate(samples) if sample.get(key) is not None] for key in keys}
    whole = [key for key in keys if len(rows[key]) == len(samples)]
    stacked = default_collate(_of_one_length([{key: sample[key] for key in whole} for sample in samples]))
    batch = {key: value for key, value in stacked.items() if isinstance(value, Tensor)}
    for key in keys:
        if key in whole or not rows[key]:
            continue
        part = default_collate(_of_one_length([{key: samples[row][key]} for row in rows[key]]))[key]
        if isinstance(part, Tensor):
            batch[key] = part.new_zeros(len(samples), *part.shape[1:])
            batch[key][rows[key]] = part
            batch[labelled_key(key)] = torch.zeros(len(samples), dtype=torch.bool)
            batch[labelled_key(key)][rows[key]] = True
    return batch


def of_samples(batch: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Some of the samples of a batch, `rows` (N,) bool, as a batch of their own."""
    found = {}
    for key, value in batch.items():
        if key.endswith(_SUFFIX):
            continue
        there = has_label(batch, key)
        known = None if there is None else there[rows]
        if known is None or bool(known.any()):
            found[key] = value[rows]
        if known is not None and bool(known.any()) and not bool(known.all()):
            found[labelled_key(key)] = known
    return found


def merged(parts: Sequence[tuple[Tensor, Mapping[str, Tensor]]], count: int) -> dict[str, Tensor]:
    """The batches of `parts`, whose samples go to rows (n,) of one of `count`.

    Raises `UserError` naming the entry whose shapes differ.
    """
    batch: dict[str, Tensor] = {}
    for key in dict.fromkeys(key for _, part in parts for key in part if not key.endswith(_SUFFIX)):
        having = [(rows, part) for rows, part in parts if key in part]
        values = [part[key] for _, part in having]
        if all(value.ndim == 3 and value.shape[-1] == 5 for value in values):  # boxes
            most = max(value.shape[1] for value in values)
            values = [padded_boxes(value, most) if value.shape[1] < most else value for value in values]
        if len({value.shape[1:] for value in values}) > 1:
            shapes = " and ".join(str(tuple(value.shape[1:])) for value in values)
            raise UserError(f"[data] samples of several data sets do not stack: {key!r} is {shapes}")
        kind = values[0].dtype
        for value in values[1:]:
            kind = torch.promote_types(kind, value.dtype)
        batch[key] = torch.zeros(count, *values[0].shape[1:], dtype=kind, device=values[0].device)
        there = torch.zeros(count, dtype=torch.bool, device=values[0].device)
        for (rows, part), value in zip(having, values, strict=True):
            known = has_label(part, key)
            batch[key][rows] = value.to(kind)
            there[rows] = True if known is None else known
        if not bool(there.all()):
            batch[labelled_key(key)] = there
    return batch


def _of_one_length(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The samples, with labels of boxes (M, 5) of different M filled up with rows of nothing, of class -1."""
    if not samples:
        return samples
    padded = [dict(sample) for sample in samples]
    for key in samples[0]:
        labels = [torch.as_tensor(sample[key]) if _are_boxes(sample[key]) else None for sample in samples]
        counts = {None if label is None else len(label) for label in labels}
        if None in counts or len(counts) == 1:
            continue
        most = max(count or 0 for count in counts)
        for sample, label in zip(padded, labels, strict=True):
            assert label is not None
            sample[key] = padded_boxes(label, most)
    return padded


def padded_boxes(label: Tensor, count: int) -> Tensor:
    """Boxes (..., M, 5) as (..., `count`, 5), with rows of class -1 after them."""
    filled = label.new_zeros(*label.shape[:-2], count, 5)
    filled[..., 4] = -1
    filled[..., : label.shape[-2], :] = label
    return filled


def _are_boxes(value: Any) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray) and value.ndim == 2 and value.shape[1] == 5
