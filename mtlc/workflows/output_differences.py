"""Measures how far the outputs of two programs for one task are apart, sample by sample. Needs numpy alone."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np


class Differences:
    """Gathers pairs of outputs (N, …) of one task, batch by batch; the second of a pair is the reference."""

    def __init__(self) -> None:
        self._largest: list[float] = []  # by sample
        self._sums: list[float] = []
        self._totals: list[float] = []
        self._scale = 0.0
        self._why: str | None = None

    def add(self, found: np.ndarray, reference: np.ndarray) -> None:
        """Count one batch."""
        if found.shape != reference.shape or found.dtype != reference.dtype:
            one, two = (f"{array.dtype} {list(array.shape)}" for array in (found, reference))
            self._why = f"outputs {one} and {two}"
            return
        if not (np.isfinite(found).all() and np.isfinite(reference).all()):
            self._why = "an output is not finite"
            return
        expected = np.atleast_1d(reference.astype(np.float64))
        difference = np.abs(np.atleast_1d(found.astype(np.float64)) - expected)
        by_sample = difference.reshape(len(difference), -1)
        self._largest += by_sample.max(1, initial=0.0).tolist()
        self._sums += by_sample.sum(1).tolist()
        self._totals += np.abs(expected).reshape(len(expected), -1).sum(1).tolist()
        self._scale = max(self._scale, float(np.abs(expected).max(initial=0.0)))

    def over(self, tolerance: float) -> list[int]:
        """The samples whose largest difference is over `tolerance` of the reference's largest value."""
        return [index for index, largest in enumerate(self._largest) if largest > tolerance * self._scale]

    def summary(self, without: Collection[int] = ()) -> dict[str, Any]:
        """``max_abs``; ``max_rel``, it as a share of the reference's largest absolute value over all samples;
        ``mean_rel``, Σ |difference| / Σ |reference|. All None, with the reason in ``why``, if the outputs do not
        compare. The samples `without` are left out.
        """
        if self._why is not None:
            return {"max_abs": None, "max_rel": None, "mean_rel": None, "why": self._why}
        kept = [index for index in range(len(self._largest)) if index not in without]
        largest = max((self._largest[index] for index in kept), default=0.0)
        total, sum_ = (sum(values[index] for index in kept) for values in (self._totals, self._sums))
        if largest == 0:
            return {"max_abs": 0.0, "max_rel": 0.0, "mean_rel": 0.0, "why": None}
        if not total:
            why = "the reference is zero everywhere"
            return {"max_abs": largest, "max_rel": None, "mean_rel": None, "why": why}
        return {"max_abs": largest, "max_rel": largest / self._scale, "mean_rel": sum_ / total, "why": None}
