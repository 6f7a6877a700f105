"""Expects what a trial would find from what earlier ones found: where to begin a search, and which not to begin.

The losses of a unit at a count are known from the sensitivity map, or from the last sweep, on a network that has lost
other channels since. They say where a limit will be crossed, not whether it is kept: the trial decides that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

Losses = Mapping[str, float]

_HOPELESS = 2.0
"""How many times what is allowed the least cut must be expected to cost for it not to be tried."""


@dataclass
class _Unit:
    """`growth` is by count and task the logarithm of how many times the loss was that with `present` channels."""

    present: int
    growth: dict[int, dict[str, float]] = field(default_factory=dict)

    def at(self, kept: int, task: str) -> float:
        """Between two counts that were tried by a straight line; beyond the last as between the last two."""
        points = [(0, 0.0), *sorted((self.present - k, found[task]) for k, found in self.growth.items())]
        gone = self.present - kept
        for (one, low), (other, high) in pairwise(points):
            if gone <= other or other == points[-1][0]:
                return low + (high - low) * (gone - one) / (other - one)
        return 0.0


class ExpectedGrowth:
    """By unit, what its trials found."""

    def __init__(self) -> None:
        self._units: dict[str, _Unit] = {}

    def note(self, unit: str, present: int, kept: int, before: Losses, after: Losses) -> None:
        """A trial that cut a unit from `present` to `kept` channels, and the tasks' losses before and after.

        One that took nothing, as of two heads a quarter is none, tells nothing.
        """
        if kept >= present:
            return
        known = self._units.get(unit)
        if known is None or known.present != present:
            known = self._units[unit] = _Unit(present)
        known.growth[kept] = {t: math.log(max(_ratio(after[t], before[t]), 1e-6)) for t in after}

    def begin(
        self, unit: str, present: int, counts: Sequence[int], losses: Losses, limits: Losses
    ) -> tuple[int | None, str | None]:
        """Where in `counts`, mild to severe, to begin; and the task that forbids all of them by far, if one does.

        The most severe count that is expected to keep the `limits`, from the present `losses`; None if nothing is
        known.
        """
        known = self._units.get(unit)
        if known is None or not known.growth or present > known.present:
            return None, None

        def past(kept: int) -> tuple[float, str]:
            """How far the worst task is expected to go, in shares of what it may."""
            found = []
            for task in limits:
                allowed = _ratio(limits[task], losses[task]) - 1
                growth = math.expm1(min(known.at(kept, task) - known.at(present, task), 50.0))
                found.append((growth / allowed if allowed > 0 else (math.inf if growth > 0 else 0.0), task))
            return max(found)

        worst, task = past(counts[0])
        if worst > _HOPELESS:
            return 0, task
        within = [index for index, kept in enumerate(counts) if past(kept)[0] <= 1]
        return (max(within) if within else 0), None


def _ratio(loss: float, base: float) -> float:
    return loss / base if base > 0 else (1.0 if loss <= 0 else 1e12)
