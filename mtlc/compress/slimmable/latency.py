"""Milliseconds as the cost of a configuration: predicted for all from a few that are measured, checked where it counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import nnls

from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.search import Found, Question, Search, Strategy
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.program import Program

Timer = Callable[[Program], float]
_ATTEMPTS = 5


class LatencyModel:
    """ms ≈ a + b · MACs of the encoder + c · MACs of the decoders, b and c not negative, fitted to what was measured.

    Measured configurations have what was measured; of the others it is assumed that they are as much slower than the
    line says as the worst of those that a search found. `timer` gives the ms of a program on the device.
    """

    def __init__(self, supernet: Supernet, timer: Timer) -> None:
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
        for configuration in dict.fromkeys(corners):
            self._time(configuration)
        codes = np.array([self._code(c) for c in self.measured])
        self._weights, _ = nnls(codes, np.array(list(self.measured.values())))

    def __call__(self, configuration: Configuration) -> float:
        if configuration in self.measured:
            return self.measured[configuration]
        return self._worst * float(self._code(configuration) @ self._weights)

    def measure(self, configuration: Configuration) -> float:
        """Cut the configuration out and time it; what was timed before is not timed again."""
        if configuration not in self.measured:
            line = float(self._code(configuration) @ self._weights)
            self._worst = max(self._worst, self._time(configuration) / line)
        return self.measured[configuration]

    def _time(self, configuration: Configuration) -> float:
        self.measured[configuration] = self._timer(self._supernet.narrow(configuration))
        return self.measured[configuration]

    def _code(self, configuration: Configuration) -> np.ndarray:
        encoder = self._supernet.encoder_macs(configuration.encoder)
        return np.array([1.0, encoder / 1e6, (self._supernet.macs(configuration) - encoder) / 1e6])


def find_within_ms(search: Search, model: LatencyModel, question: Question, strategy: Strategy = "joint") -> Found:
    """The best configuration that was timed to run within the budget in ms; `search` has the model as its cost.

    What the model took for fast enough and the device did not run so fast is timed, and the search goes on knowing it.
    """
    for _ in range(_ATTEMPTS):
        found = search.find(question, strategy)
        if model.measure(found.configuration) <= question.budget:
            break
    return search.best_of([c for c, ms in model.measured.items() if ms <= question.budget], question)
