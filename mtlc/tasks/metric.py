"""Defines a metric: what every metric of a task has and does.

A metric has `higher_is_better`, a `unit`, and a `kind` that says how its task's output is pictured. It is fed with
``update(output, target)`` and asked by ``compute()``: NaN if nothing valid was seen. The result does not depend on
how the data set was cut into batches.

How far a metric is a matter of which samples were drawn is known of one that says what each sample adds to it: by
`Metric.sums` and `Metric.of_sums` if it is worked out from sums over samples, else by ``resampled(weights)``, which
keeps what it needs of each sample: the metric (R,) of as many draws, in which sample i is ``weights[r, i]`` times.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

Kind = Literal["labels", "scalar", "normals", "probability", "boxes", "unknown"]


def can_be_resampled(metric: object) -> bool:
    """Whether a metric says what each sample adds to it: by `Metric.sums` or ``resampled``."""
    sums = getattr(type(metric), "sums", None)
    return hasattr(metric, "resampled") or (sums is not None and sums is not Metric.sums)


class Metric(ABC):
    """A number about a task over a data set."""

    higher_is_better: ClassVar[bool]
    unit: ClassVar[str]
    kind: ClassVar[Kind]

    @abstractmethod
    def update(self, output: Tensor, target: Tensor) -> None:
        """Count one batch. Raises `UserError` where the shapes do not fit."""

    @abstractmethod
    def compute(self) -> float:
        """The metric of all that was counted, in `unit`; NaN if that is nothing."""

    def details(self) -> dict[str, float]:
        """What else the counts tell, by name."""
        return {}

    def sums(self) -> np.ndarray | None:
        """The sums (K,) float64 over samples that the metric is worked out from, always in one order: those of two
        halves of the samples add up to those of all. None where there are no such sums.
        """
        return None

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        """The metric (R,) of each row of such sums (R, K), in `unit`; NaN for one of nothing valid. Asked only of a
        metric that has `sums`.
        """
        raise NotImplementedError(f"{type(self).__name__} has sums, and no of_sums to work the metric out from them")
