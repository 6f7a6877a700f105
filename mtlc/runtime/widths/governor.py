"""Keeps a session's time near a target by changing the widths while frames come in: the governor."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mtlc.errors import UserError
from mtlc.runtime.widths.configurations import ActiveConfiguration

_Inputs = np.ndarray | Mapping[str, np.ndarray]

_KEPT = 1000
"""Runs that `history` holds."""
_MOST_FAILURES = 4
"""A rung that did not hold is tried again after `patience` · 2 to this power runs at the latest."""
_FADING = 8
"""After this many times `patience`, what was learnt against a wider rung loses half of its weight."""
_LEAST_COST = 1e-6  # of a rung without operators that count
_LARGEST_FACTOR = 4.0  # between what a rung's cost says and what is learnt of it


@dataclass(frozen=True)
class Rung:
    """A configuration that a governor may take: its cost (MACs or ms), and what runs it."""

    configuration: ActiveConfiguration
    cost: float
    run: Callable[[_Inputs], dict[str, np.ndarray]]


class Run(NamedTuple):
    """One run of a governor: how long it took, and the place of its rung on the ladder (0 is the narrowest)."""

    ms: float
    rung: int


class Governor:
    """Runs a session's tasks within `target_ms` a call, by steps on a ladder of configurations.

    The ladder holds configurations that no other beats in preference-weighted gain and cost. After each run:

    - *down*, once the median of the last `window` runs is over the target: to the widest rung whose predicted time is
      under ``target · (1 − margin)``, however many steps that is, or to the narrowest;
    - *up*, once the predicted time of a wider rung was under that same bound for `patience` runs in a row. A rung that
      then does not hold is tried again after twice as many runs, four times as many, and so on.

    A rung's predicted time is the median here times the ratio of the two costs, corrected by what was measured when the
    rungs were last entered. It starts at the widest rung within the target if costs are measured ms, else at the
    widest.

    `run` may be called from several threads at once; each call counts for the rung that it began with. The session's
    own configuration is neither read nor changed.
    """

    def __init__(
        self,
        rungs: Sequence[Rung],
        target_ms: float,
        window: int = 7,
        patience: int = 30,
        margin: float = 0.1,
        in_ms: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`rungs` rise in cost (in ms if `in_ms`); `clock` gives seconds. Raises `UserError` for a bad number."""
        if not _number(target_ms) or not 0 < target_ms < math.inf:
            raise UserError(f"target_ms = {target_ms!r}: must be a number of ms above 0")
        for name, count in (("window", window), ("patience", patience)):
            if type(count) is not int or count < 1:
                raise UserError(f"{name} = {count!r}: must be a number of runs, 1 or more")
        if not _number(margin) or not 0 <= margin < 1:
            raise UserError(f"margin = {margin!r}: must be a fraction, 0 or more and less than 1")
        self._rungs = tuple(rungs)
        self._target, self._bound = float(target_ms), target_ms * (1 - margin)
        self._patience, self._clock = patience, clock
        self._costs = [max(rung.cost, _LEAST_COST) for rung in rungs]
        self._corrected = list(self._costs)
        """The costs in proportion to what was measured when the rungs were last entered."""
        self._failures = [0] * len(rungs)
        within = [place for place, cost in enumerate(self._costs) if cost <= target_ms] if in_ms else range(len(rungs))
        self._at = max(within, default=0)
        self._window: deque[float] = deque(maxlen=window)
        self._history: deque[Run] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()
        self._switches = 0
        self._saturated = False
        self._entered_from: tuple[int, float] | None = None  # the rung before this one, and its last median
        self._climbing = False  # this rung was climbed to and has not proved itself yet
        self._since = 0  # runs since it was entered
        self._quiet, self._reach = 0, self._at  # for how many runs wider rungs would do, and how wide all through
        self._doubted = 0  # for how many runs only what was learnt spoke against a wider rung

    @property
    def ladder(self) -> tuple[ActiveConfiguration, ...]:
        """The configurations that it chooses from, from the cheapest to the dearest."""
        return tuple(rung.configuration for rung in self._rungs)

    @property
    def configuration(self) -> ActiveConfiguration:
        """The configuration of the next run."""
        return self._rungs[self._at].configuration

    @property
    def history(self) -> tuple[Run, ...]:
        """The last runs, at most 1000, in the order they ended."""
        with self._lock:
            return tuple(self._history)

    @property
    def switches(self) -> int:
        """How many times the configuration changed."""
        return self._switches

    @property
    def saturated(self) -> bool:
        """Whether even the narrowest configuration is over the target now."""
        return self._saturated

    def run(self, x: _Inputs) -> dict[str, np.ndarray]:
        """Run the tasks on `x` as `Session.run` does, and adjust the configuration of the runs after it."""
        # The run itself is outside the lock: threads run side by side, and only what they learn is put down in turn.
        entry = self._switches  # read first: a switch after it makes the run count for no rung
        at = self._at
        begun = self._clock()
        outputs = self._rungs[at].run(x)
        ms = 1000 * (self._clock() - begun)
        with self._lock:
            self._history.append(Run(ms, at))
            if entry == self._switches:
                self._adjust(ms)
        return outputs

    def _adjust(self, ms: float) -> None:
        """Take the time of a run at this rung into account."""
        self._window.append(ms)
        self._since += 1
        # The window was cleared with the last switch, so a full one is of this rung alone; nothing is decided before.
        if len(self._window) < (self._window.maxlen or 0):
            return
        median = _median(self._window)
        if self._entered_from is not None:
            self._learn(*self._entered_from, median)
            self._entered_from = None
        # Down as soon as a window says so, up only with patience:
        #
        #     rung 2   =====+ over the target             +====   wider rungs would have done for `patience` runs
        #     rung 1        |                             |
        #     rung 0        +=============================+        down and up by as many rungs as it takes
        if median > self._target:
            self._saturated = self._at == 0
            if self._at > 0:
                self._descend(median)
            return
        self._saturated = False
        # The rung held for as long as it took to dare it: earlier failures there no longer count.
        if self._climbing and self._since >= self._patience:
            self._climbing, self._failures[self._at] = False, 0
        self._consider_climbing(median)

    def _learn(self, before: int, median_before: float, median: float) -> None:
        if median_before > 0:
            # Two rungs' medians, one right after the other, say how their costs compare under the load of the moment.
            # One odd window may not push a rung out of reach, or make a dear one look free: hence the bounds.
            cost = self._costs[self._at]
            measured = self._corrected[before] * median / median_before
            self._corrected[self._at] = min(max(measured, cost / _LARGEST_FACTOR), cost * _LARGEST_FACTOR)

    def _descend(self, median: float) -> None:
        if self._climbing:
            self._failures[self._at] = min(self._failures[self._at] + 1, _MOST_FAILURES)
        # The narrowest is not asked whether it fits: there is nothing below it.
        self._enter(self._fitting(self._corrected, range(self._at - 1, 0, -1), median, 0), median, climbing=False)

    def _consider_climbing(self, median: float) -> None:
        # Widest first: the first that fits is as far as a climb could go.
        wider = range(len(self._rungs) - 1, self._at, -1)
        reach = self._fitting(self._corrected, wider, median, self._at)
        if self._fitting(self._costs, wider, median, self._at) > reach:
            self._doubted += 1
            if self._doubted >= self._patience * _FADING:
                # What was learnt may be of a moment when the load changed: it fades, so that it cannot hold for ever.
                self._corrected = [math.sqrt(a * b) for a, b in zip(self._corrected, self._costs, strict=True)]
                self._doubted = 0
        if reach == self._at:
            self._quiet = 0
            return
        # What would have done in every one of the quiet runs, not only in the last.
        self._reach = reach if self._quiet == 0 else min(self._reach, reach)
        self._quiet += 1
        # A rung that failed wants more quiet runs; one below it that never did may be due already.
        for place in range(self._reach, self._at, -1):
            if self._quiet >= self._patience * 2 ** self._failures[place]:
                self._enter(place, median, climbing=True)
                return

    def _enter(self, place: int, median: float, climbing: bool) -> None:
        self._entered_from, self._climbing = (self._at, median), climbing
        self._at = place
        self._switches += 1
        self._window.clear()
        self._since = self._quiet = self._doubted = 0

    def _fitting(self, costs: Sequence[float], places: range, median: float, otherwise: int) -> int:
        """The first of `places` whose predicted ms, the median here times the cost ratio, are within the bound."""
        limit = self._bound * costs[self._at] / median if median > 0 else math.inf
        for place in places:
            if costs[place] <= limit:
                return place
        return otherwise


def _number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _median(values: deque[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
