"""Keeps what each sample of a split adds to a metric, from which the metric of any draw of samples follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

Resampled = Callable[[np.ndarray], np.ndarray]
"""From how often each sample is drawn, (R, n), to the metric of each draw, (R,)."""


@dataclass(frozen=True)
class SampleStatistics:
    """What `rows` (n,), the places in the split of its labelled samples in rising order, add to a metric."""

    rows: np.ndarray
    _resampled: Resampled

    def metrics(self, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The metric (R,) of draws in which the sample at ``rows[i]`` is there ``weights[r, i]`` times.

        `rows` (m,) are some of the places, in rising order; `weights` are (R, m). NaN where nothing valid was drawn.
        """
        if not np.array_equal(rows, self.rows):
            spread = np.zeros((len(weights), len(self.rows)))
            spread[:, np.searchsorted(self.rows, rows)] = weights
            weights = spread
        return self._resampled(weights)


class KeptStatistics:
    """Collects the statistics of a metric: its sums of each sample alone, or what the metric keeps itself."""

    def __init__(self, metric: Any, make: Callable[[], Any]) -> None:
        self._metric, self._make = metric, make
        self._rows: list[np.ndarray] = []
        self._sums: list[np.ndarray] = []

    def add(self, rows: np.ndarray, output: Tensor, target: Tensor) -> None:
        """Count labelled samples at places `rows`, which the metric was just fed with."""
        self._rows.append(rows)
        if hasattr(self._metric, "resampled"):
            return
        for place in range(len(rows)):
            alone = self._make()
            alone.update(output[place : place + 1], target[place : place + 1])
            self._sums.append(np.asarray(alone.sums(), float))

    def statistics(self) -> SampleStatistics:
        rows = np.concatenate(self._rows)
        if hasattr(self._metric, "resampled"):
            return SampleStatistics(rows, self._metric.resampled)
        sums = np.stack(self._sums)
        return SampleStatistics(rows, lambda weights: np.asarray(self._metric.of_sums(weights @ sums), float))
