"""Predicts the metrics of all configurations from the few that were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mtlc.compress.slimmable.evaluations import Key

_RIDGE = 1e-2


class MetricPredictor:
    """A task's metric as a sum of what each step of each stage's width adds, and each step of its decoder's: ridge
    regression on thermometer codes (a width is the steps up to it), so that an unseen width lies between its
    neighbours.
    """

    def __init__(
        self, stages: Sequence[Sequence[float]], decoders: Mapping[str, Sequence[float]], entries: Mapping[Key, float]
    ) -> None:
        self._stages, self._decoders = stages, decoders
        self._fits = {task: self._fit(task, entries) for task in decoders}
        self._parts: dict[str, tuple[dict[tuple[float, ...], float], dict[float, float]]] = {
            task: ({}, {}) for task in decoders
        }

    def __call__(self, encoder: Sequence[float], task: str, width: float) -> float:
        mean, weights, split = self._fits[task]
        encoders, widths = self._parts[task]
        encoder = tuple(encoder)
        if encoder not in encoders:
            # The sum is linear, so what an encoder adds is worked out once and serves every decoder width.
            encoders[encoder] = float(self._encoder_code(encoder) @ weights[:split])
        if width not in widths:
            widths[width] = float(_code(self._decoders[task], width) @ weights[split:])
        return mean + encoders[encoder] + widths[width]

    def _fit(self, task: str, entries: Mapping[Key, float]) -> tuple[float, np.ndarray, int]:
        rows = [(encoder, width, metric) for (encoder, of, width), metric in entries.items() if of == task]
        codes = np.array(
            [[*self._encoder_code(encoder), *_code(self._decoders[task], width)] for encoder, width, _ in rows]
        )
        metrics = np.array([metric for _, _, metric in rows])
        # Centred, so that the ridge pulls the steps towards 0 and leaves the mean alone.
        mean_code, mean = codes.mean(0), float(metrics.mean())
        centred = codes - mean_code
        gram = centred.T @ centred + _RIDGE * np.eye(codes.shape[1])
        weights = np.linalg.solve(gram, centred.T @ (metrics - mean))
        return mean - float(mean_code @ weights), weights, sum(len(options) - 1 for options in self._stages)

    def _encoder_code(self, encoder: Sequence[float]) -> np.ndarray:
        codes = [_code(options, width) for options, width in zip(self._stages, encoder, strict=True)]
        return np.concatenate([np.zeros(0), *codes])


def _code(options: Sequence[float], width: float) -> np.ndarray:
    # Widths (0.25, 0.5, 0.75, 1): 0.25 → 000, 0.5 → 100, 0.75 → 110, 1 → 111. Each weight is what one more step adds.
    return np.array([1.0 if width >= option else 0.0 for option in options[1:]])
