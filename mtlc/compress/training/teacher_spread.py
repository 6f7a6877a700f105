"""Measures how far a teacher's numbers lie apart in the batch: the unit in which a student's distance is told."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlc.compress.training.process_group import ProcessGroup


class TeacherSpread:
    """Of the samples of this process, or of all processes of a `group`."""

    def __init__(self, group: ProcessGroup | None = None) -> None:
        self._group = group

    def deviation(self, values: Tensor) -> Tensor:
        """The standard deviation of all numbers, without bias: a scalar."""
        if self._group is None:
            return values.std()
        squares, count = self._squares(values.reshape(-1, 1), self._group)
        return (squares.sum() / (count - 1).clamp_min(1)).sqrt().to(values.dtype)

    def variance(self, rows: Tensor) -> Tensor:
        """The mean over columns of their variance over `rows` (R, C): a scalar."""
        if self._group is None:
            # Over positions: a channel that is the same everywhere has nothing to explain.
            return (rows - rows.mean(0)).square().mean()
        squares, count = self._squares(rows, self._group)
        return (squares.mean() / count).to(rows.dtype)

    def _squares(self, rows: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor]:
        """By column, the sum of squared distances from the mean over all processes; and how many rows they have."""
        wide = rows.detach().double()
        sums = group.sum(torch.cat([wide.sum(0), wide.new_tensor([len(rows)])]))
        mean, count = sums[:-1] / sums[-1], sums[-1]
        return group.sum((wide - mean).square().sum(0)), count
