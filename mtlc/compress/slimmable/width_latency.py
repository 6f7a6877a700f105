"""Predicts the milliseconds of every configuration from a few that are measured, and checks them where it counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import nnls

from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.compress.slimmable.width_search import Found, Question, Search, Strategy
from mtlc.log import Log, silent, tracked
from mtlc.program.program import Program

Timer = Callable[[Program], float]
_ATTEMPTS = 5
TABLE_ERROR = 0.1
"""By how much the table may miss a measured corner and still be taken."""


class LatencyModel:
    """ms by the latency table of the device, or ≈ a + b · MACs of the encoder + c · MACs of the decoders, fitted.

    Four corners are measured. The table is taken where, scaled to the widest network, it tells the other corners within
    `TABLE_ERROR`; else the line through the corners, b and c not negative. Measured configurations have what was
    measured; of the others it is assumed that they are as much slower than predicted as the worst of those that a
    search found. `timer` gives the ms of a program on the device, `table` what its latency table says of a
    configuration.
    """

    def __init__(self, supernet: Supernet, timer: Timer, table: Callable[[Configuration], float] | None = None) -> None:
        self._supernet, self._timer = supernet, timer
        self.measured: dict[Configuration, float] = {}
        self._worst = 1.0
        whole, least = supernet.largest, supernet.smallest
        corners = [
            whole,
            least,
            Configuration(whole.encoder, least.decoders),
            Configuration(least.encoder, whole.decoders),
        ]
        for configuration in tracked(list(dict.fromkeys(corners)), "timing configurations"):
            self._time(configuration)
        # ms ≈ a + b · M(encoder) + c · M(decoders), M in millions of MACs so that the columns are of like size. None
        # may be negative: more work never takes less time.
        codes = np.array([self._code(c) for c in self.measured])
        self._weights, _ = nnls(codes, np.array(list(self.measured.values())))
        self.table_error: float | None = None
        self._table = None if table is None else self._checked(table)

    @property
    def uses_table(self) -> bool:
        """Whether predictions are the table's and not the line's."""
        return self._table is not None

    def __call__(self, configuration: Configuration) -> float:
        if configuration in self.measured:
            return self.measured[configuration]
        return self._worst * self._predicted(configuration)

    def measure(self, configuration: Configuration) -> float:
        """Cut the configuration out and time it; what was timed before is not timed again."""
        if configuration not in self.measured:
            predicted = self._predicted(configuration)
            # Searches seek out what is predicted too fast. The factor only grows: a later search starts from the worst
            # miss.
            self._worst = max(self._worst, self._time(configuration) / predicted)
        return self.measured[configuration]

    def _predicted(self, configuration: Configuration) -> float:
        if self._table is not None:
            return self._table(configuration)
        return float(self._code(configuration) @ self._weights)

    def _checked(self, table: Callable[[Configuration], float]) -> Callable[[Configuration], float] | None:
        # The table's absolute level may be off by a constant factor (a busier machine); its proportions are put to the
        # test.
        scale = self.measured[self._supernet.largest] / table(self._supernet.largest)
        errors = [abs(scale * table(c) / ms - 1) for c, ms in self.measured.items() if c != self._supernet.largest]
        self.table_error = max(errors, default=0.0)
        return (lambda configuration: scale * table(configuration)) if self.table_error <= TABLE_ERROR else None

    def _time(self, configuration: Configuration) -> float:
        self.measured[configuration] = self._timer(self._supernet.narrow(configuration))
        return self.measured[configuration]

    def _code(self, configuration: Configuration) -> np.ndarray:
        encoder = self._supernet.encoder_macs(configuration.encoder)
        return np.array([1.0, encoder / 1e6, (self._supernet.macs(configuration) - encoder) / 1e6])


def table_of(supernet: Supernet, log: Log = silent) -> Callable[[Configuration], float]:
    """The ms of any configuration by this machine's latency table, unscaled.

    Seconds: the widest network is exported.
    """
    from mtlc.compress.channels.latency_costs import latency_costs

    costs = latency_costs(supernet.program, {u.name: u for u in supernet.table.units}, None, log)

    def predicted(configuration: Configuration) -> float:
        return costs.cost(supernet.table.removed(configuration))

    return predicted


def find_within_ms(search: Search, model: LatencyModel, question: Question, strategy: Strategy = "joint") -> Found:
    """The best configuration that was timed to run within the budget in ms; `search` has the model as its cost.

    What the model took for fast enough and the device did not run so fast is timed, and the search goes on knowing it.
    """
    for _ in range(_ATTEMPTS):
        found = search.find(question, strategy)
        if model.measure(found.configuration) <= question.budget:
            break
    return search.best_of([c for c, ms in model.measured.items() if ms <= question.budget], question)
