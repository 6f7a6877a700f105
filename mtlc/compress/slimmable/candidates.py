"""Lists all configurations that obey a preference, ranked by what is predicted of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.runtime.widths.width_choice import obedient_sets

Encoder = tuple[float, ...]
Parts = Callable[[Encoder], tuple[float, Mapping[str, Sequence[float]]]]
"""Costs with an encoder: its own, and those of every task's decoder at each of its widths. They add up."""
Gains = Callable[[Encoder], Mapping[str, Sequence[float]]]
"""What each of a task's decoder widths adds to the gain of a configuration with an encoder."""


class Candidates:
    """Every encoder with every set of decoder widths that obeys the preference, as `obedient_sets` has it."""

    def __init__(self, supernet: Supernet, preference: Mapping[str, float], parts: Parts) -> None:
        self._encoders, self._parts = supernet.encoders(), parts
        self._tasks = supernet.tasks
        self._options = [supernet.decoder_options(task) for task in supernet.tasks]
        weights = {task: preference[task] for task in supernet.tasks}
        self._sets = obedient_sets(weights, dict(zip(supernet.tasks, self._options, strict=True)))

    def best(self, budget: float, gains: Gains, count: int) -> list[Configuration]:
        """The `count` configurations within `budget` of the largest gains; of equal ones the cheaper come first."""
        found: list[tuple[float, float, Encoder, int]] = []
        columns = range(len(self._tasks))
        for encoder in self._encoders:
            base, decoders = self._parts(encoder)
            if base > budget:
                continue
            added = gains(encoder)
            # Arrays over all obedient sets of decoders: a set is a row of indices into each task's widths.
            costs = base + sum(np.asarray(decoders[self._tasks[i]])[self._sets[:, i]] for i in columns)
            values = sum(np.asarray(added[self._tasks[i]])[self._sets[:, i]] for i in columns)
            fits = np.flatnonzero(costs <= budget)
            order = fits[np.lexsort((costs[fits], -values[fits]))[:count]]
            # At most `count` of each encoder can be among the best of all.
            found += [(-float(values[i]), float(costs[i]), encoder, int(i)) for i in order]
        return [Configuration(encoder, self._widths(place)) for _, _, encoder, place in sorted(found)[:count]]

    def among(self, configurations: Iterable[Configuration]) -> list[Configuration]:
        """Those of the configurations that obey the preference."""
        obedient = {self._widths(place) for place in range(len(self._sets))}
        return [c for c in configurations if c.decoders in obedient]

    def _widths(self, place: int) -> tuple[float, ...]:
        return tuple(options[i] for options, i in zip(self._options, self._sets[place], strict=True))
