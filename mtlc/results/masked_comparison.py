"""Describes how far a network that lost parts is from the original whose removed parts are masked."""

from __future__ import annotations

from mtlc.results.base import Result


class MaskedComparison(Result):
    """A network as a pass built it, before it was trained, beside the original with the same parts masked.

    Differences are the largest of all values, as a share of the largest value.
    """

    samples: int
    """Samples of the calibration split that both ran on."""
    precision: str
    """What both computed in: ``float32``, or ``float64`` where rounding alone was too much for float32."""
    tolerance: float
    """Largest difference that rounding may cause."""
    tasks: dict[str, float]
    """Difference of each task's output."""
    layers: dict[str, float] = {}
    """Difference of what each layer's experts give for the same tokens, by module path."""
    exact: dict[str, float] | None = None
    """Difference of each task's output from the original without any mask; None where the result is approximate."""
    without_dropped_tasks: dict[str, float] | None = None
    """Difference that leaving out the other tasks makes to each task's output; None where all tasks stay."""

    @property
    def largest(self) -> float:
        """The largest of all differences."""
        every = (self.tasks, self.layers, self.exact or {}, self.without_dropped_tasks or {})
        return max((value for one in every for value in one.values()), default=0.0)

    def line(self) -> str:
        """The comparison in one line."""
        return (
            f"max difference {self.largest:.2g} of the largest value, on {self.samples} calibration samples in "
            f"{self.precision} (allowed: {self.tolerance:.0e}, as rounding may)"
        )
