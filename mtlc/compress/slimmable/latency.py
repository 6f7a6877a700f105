"""Milliseconds as the cost of a configuration: predicted for all from a few that are measured, checked where it counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.search import Found, Question, Search, Strategy
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.errors import UserError
from mtlc.program import Program

Timer = Callable[[Program], float]
_ATTEMPTS = 5


class LatencyModel:
    """ms ≈ a + b · MACs of the encoder + c · MACs of the decoders, b and c not negative, fitted to what was measured.

    Measured configurations have what was measured. `timer` gives the ms of a program on the device.
    """

    def __init__(self, supernet: Supernet, timer: Timer) -> None:
        self._supernet, self._timer = supernet, timer
        self.measured: dict[Configuration, float] = {}
        whole, least = supernet.largest, supernet.smallest
        for configuration in dict.fromkeys(
            (whole, least, Configuration(whole.encoder, least.decoders), Configuration(least.encoder, whole.decoders))
        ):
            self.measure(configuration)

    def __call__(self, configuration: Configuration) -> float:
        if configuration in self.measured:
            return self.measured[configuration]
        return float(np.dot(self._code(configuration), self._weights))

    def measure(self, configuration: Configuration) -> float:
        """Cut the configuration out and time it; what was timed before is not timed again."""
        if configuration not in self.measured:
            self.measured[configuration] = self._timer(self._supernet.narrow(configuration))
            self._fit()
        return self.measured[configuration]

    def _fit(self) -> None:
        from scipy.optimize import nnls

        codes = np.array([self._code(c) for c in self.measured])
        self._weights, _ = nnls(codes, np.array(list(self.measured.values())))

    def _code(self, configuration: Configuration) -> np.ndarray:
        encoder = self._supernet.encoder_macs(configuration.encoder)
        return np.array([1.0, encoder / 1e6, (self._supernet.macs(configuration) - encoder) / 1e6])


def find_within_ms(search: Search, model: LatencyModel, question: Question, strategy: Strategy = "joint") -> Found:
    """The best configuration that was measured to run within the budget in ms; `search` has the model as its cost.

    What the model took for fast enough and the device did not run so fast is measured, and the search goes on knowing it.
    Raises `UserError` if none of a few is within the budget.
    """
    for _ in range(_ATTEMPTS):
        found = search.find(question, strategy)
        if model.measure(found.configuration) <= question.budget:
            return found
    measured = min(model.measured.values())
    raise UserError(
        f"budget {question.budget:.4g} ms: {_ATTEMPTS} configurations that should run within it did not; the fastest that was "
        f"measured takes {measured:.4g} ms; raise the budget, or try again on a quiet machine"
    )
