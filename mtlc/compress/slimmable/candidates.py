"""All configurations that obey a preference, ranked by what is predicted of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import prod

import numpy as np

from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.runtime.choose import decoder_widths, scales

Encoder = tuple[float, ...]
Parts = Callable[[Encoder], tuple[float, Mapping[str, Sequence[float]]]]
"""Costs with an encoder: its own, and those of every task's decoder at each of its widths. They add up."""
Gains = Callable[[Encoder], Mapping[str, Sequence[float]]]
"""What each of a task's decoder widths adds to the gain of a configuration with an encoder."""

_MOST_SETS = 20_000  # of decoder widths; of more only those that follow the preference in proportion are looked at


class Candidates:
    """Every encoder with every set of decoder widths in which a task that is preferred is no narrower than one that is
    less so, and a task without any preference has its narrowest.
    """

    def __init__(self, supernet: Supernet, preference: Mapping[str, float], parts: Parts) -> None:
        self._encoders, self._parts = supernet.encoders(), parts
        self._tasks = supernet.tasks
        self._options = [supernet.decoder_options(task) for task in supernet.tasks]
        self._sets = self._obedient(preference)

    def best(self, budget: float, gains: Gains, count: int) -> list[Configuration]:
        """The `count` configurations within `budget` of the largest gains; of equal ones the cheaper come first."""
        found: list[tuple[float, float, Encoder, int]] = []
        columns = range(len(self._tasks))
        for encoder in self._encoders:
            base, decoders = self._parts(encoder)
            if base > budget:
                continue
            added = gains(encoder)
            costs = base + sum(np.asarray(decoders[self._tasks[i]])[self._sets[:, i]] for i in columns)
            values = sum(np.asarray(added[self._tasks[i]])[self._sets[:, i]] for i in columns)
            fits = np.flatnonzero(costs <= budget)
            order = fits[np.lexsort((costs[fits], -values[fits]))[:count]]
            found += [(-float(values[i]), float(costs[i]), encoder, int(i)) for i in order]
        return [Configuration(encoder, self._widths(place)) for _, _, encoder, place in sorted(found)[:count]]

    def _widths(self, place: int) -> tuple[float, ...]:
        return tuple(options[i] for options, i in zip(self._options, self._sets[place], strict=True))

    def _obedient(self, preference: Mapping[str, float]) -> np.ndarray:
        """The sets of decoder widths, as places among each task's options: (sets, tasks)."""
        weights = [preference[task] for task in self._tasks]
        ranges = [range(len(o)) if w > 0 else range(1) for o, w in zip(self._options, weights, strict=True)]
        if prod(len(r) for r in ranges) > _MOST_SETS:
            return self._proportional(preference)
        sets = np.array(list(product(*ranges)), dtype=np.intp)
        widths = np.stack([np.asarray(o)[sets[:, i]] for i, o in enumerate(self._options)], 1)
        obeys = np.ones(len(sets), bool)
        for more, p in enumerate(weights):
            for less, q in enumerate(weights):
                if p > q > 0:
                    widest = self._options[more][-1]
                    obeys &= (widths[:, more] >= widths[:, less]) | (widths[:, more] == widest)
        return sets[obeys]

    def _proportional(self, preference: Mapping[str, float]) -> np.ndarray:
        available = dict(zip(self._tasks, self._options, strict=True))
        sets = []
        for scale in scales(preference, available):
            widths = decoder_widths(preference, scale, available)
            sets.append([available[task].index(widths[task]) for task in self._tasks])
        return np.unique(np.array([[0] * len(self._tasks), *sets], dtype=np.intp), axis=0)
