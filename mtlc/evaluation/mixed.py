"""Makes one data set of several, such as some with labels of one task each, spread over each other evenly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtlc.errors import UserError
from mtlc.evaluation.collation import merged, of_samples
from mtlc.evaluation.splits import Batch, fetch

_PART = "mixed:part"
"""The entry of a batch that says which part each sample is of, (N,): `augment` is given nothing else of them."""


class Mixed:
    """The samples of `parts`, of which each has its own ``batch`` if it has one; a batch may hold some of each.

    Every stretch has about the share of each part that the whole has, so the first samples of a split, which is all
    that some measurements look at, are of all parts. The order is always the same.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self.made_of = self.mixed_of = tuple(parts)
        places = [((at + 0.5) / len(part), which, at) for which, part in enumerate(parts) for at in range(len(part))]
        self._places = [(which, at) for _, which, at in sorted(places)]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Any:
        which, at = self._places[index]
        return self.made_of[which][at]

    def batch(self, indices: Sequence[int]) -> Batch:
        """The samples at `indices`, each part's stacked as it does. Raises `UserError` where these do not fit."""
        places = [self._places[index] for index in indices]
        batches = {
            which: fetch(self.made_of[which], [at for part, at in places if part == which])
            for which in dict.fromkeys(part for part, _ in places)
        }
        return _joined(batches, torch.tensor([which for which, _ in places]))


class MixedAndAugmented(Mixed):
    """The same where some part has an ``augment``: each one's own is applied to its samples, and to no others."""

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        part, batches = batch[_PART], dict[int, Batch]()
        for which in part.unique().tolist():
            own = of_samples({key: value for key, value in batch.items() if key != _PART}, part == which)
            data = self.made_of[which]
            batches[which] = data.augment(own, generator) if hasattr(data, "augment") else own
        return _joined(batches, part)


def mixed(*parts: Any) -> Mixed:
    """One data set of several map-style ones. Raises `UserError` for no part, and for a part without samples."""
    flat = [one for part in parts for one in (part.made_of if isinstance(part, Mixed) else [part])]
    if not flat or not all(len(part) for part in flat):
        raise UserError("[data] mixed: give one data set or more, with samples in each")
    return (MixedAndAugmented if any(hasattr(part, "augment") for part in flat) else Mixed)(flat)


def _joined(batches: dict[int, Batch], part: Tensor) -> Batch:
    """The batches of some parts in one, in which sample i is the next one of part ``part[i]``."""
    found = merged([((part == which).nonzero()[:, 0], batch) for which, batch in batches.items()], len(part))
    return {**found, _PART: part}
