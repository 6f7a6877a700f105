"""Chooses an encoder and a width for every decoder, from a preference over the tasks and a budget.

Task t has preference p_t; they sum to 1. Of two tasks with a preference, the one preferred more never has the narrower
decoder, unless it has its widest or the other its narrowest; a task without any has its narrowest. Over all encoders
and all decoder widths that obey this, the combination within the budget is taken whose preference-weighted relative
gain Σ p_t · g_t is largest, where g_t is the signed relative change of the task's metric against the widest network.
The rule is ours, in the manner of ECMT (Aich et al., "Efficient Controllable Multi-Task Architectures", ICCV 2023).

Where more sets of decoder widths obey than can be looked at, those in proportion to the preference stand for them: with
r_t = p_t / max p and a scale s, each decoder takes the least width that is r_t · s or more.

Costs add up, an encoder's and its decoders', in whichever unit: MACs or ms.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np

from mtlc.errors import UserError, nearest
from mtlc.quantity import milliseconds, multiplied, share_hint, split_amount

Unit = Literal["MACs", "ms"]

MOST_SETS = 20_000
"""Sets of decoder widths that are looked at; of more only those in proportion to the preference."""
STEP = 0.05
"""How much less each rung of a ladder costs than the next, as a fraction."""

_TIE = 1e-12
_ROUNDING = 1e-9  # r_t · (w / r_t) is not always w
_STEPS = {"": 1000, "macs": 1000}
_PREFIXES = ("", "k", "M", "G")


@dataclass(frozen=True)
class Decoder:
    """A task's decoder at one width, behind one encoder. `gain` is the metric's `relative_gain` with the two."""

    width: float
    cost: float
    gain: float


@dataclass(frozen=True)
class Encoder:
    """An encoder to choose from: its own cost, and the decoders of every task, from narrow to wide."""

    name: str
    cost: float
    decoders: Mapping[str, Sequence[Decoder]]


@dataclass(frozen=True)
class Choice:
    """An encoder and a width for each task's decoder; `cost` of them all, `gain` = Σ p_t · g_t as a fraction."""

    encoder: str
    decoders: Mapping[str, float]
    cost: float
    gain: float


@dataclass(frozen=True)
class WidthBudget:
    """What a run may cost: MACs or ms, or a share (0 to 1) of the MACs of the widest configuration."""

    value: float
    unit: Unit | Literal["share"]

    @classmethod
    def parse(cls, text: str | float) -> WidthBudget:
        """Read ``"40%"``, ``"25MMACs"``, ``"25M"``, ``25e6`` (MACs) or ``"12ms"``. Raises `UserError`."""
        shown = repr(text)
        refusal = UserError(f'budget = {shown}: write "40%", "25MMACs", 25000000 or "12ms"')
        number, prefix, suffix = split_amount(text, refusal)
        if suffix == "%":
            if prefix or not 0 < number <= 100:
                raise UserError(f"budget = {shown}: a share is above 0% and at most 100%")
            return cls(number / 100, "share")
        unit: Unit = "ms" if suffix in ("ms", "s") else "MACs"
        if unit == "ms":
            number = milliseconds(number, prefix, suffix, refusal)
        elif isinstance(text, str):
            number = multiplied(number, prefix, suffix, _STEPS, refusal)
        if not 0 < number < math.inf:
            raise UserError(f"budget = {shown}: must be more than zero")
        if number <= 1 and unit == "MACs":
            raise UserError(f"budget = {shown}: must be more than one MAC{share_hint(number)}")
        return cls(number, unit)


def relative_gain(metric: float, reference: float, higher_is_better: bool) -> float:
    """The relative change of `metric` against `reference`, which is not 0; above zero is better."""
    change = (metric - reference) / abs(reference)
    return change if higher_is_better else -change


def normalised_preference(prefer: Mapping[str, float] | None, tasks: Iterable[str]) -> dict[str, float]:
    """The preference of each of `tasks`; they sum to 1. None is all alike, and a task that is not named gets 0.

    Raises `UserError` for another task's name, a value that is negative or not finite, and for zeros only.
    """
    tasks = list(tasks)
    if prefer is None:
        return {task: 1 / len(tasks) for task in tasks}
    if not isinstance(prefer, Mapping):
        raise UserError(f"prefer = {prefer!r}: give each task a number, such as {{{tasks[0]!r}: 1}}")
    for task, value in prefer.items():
        if task not in tasks:
            raise UserError(f"prefer: {task!r} is not one of the tasks that run{nearest(str(task), tasks)}")
        try:
            usable = not isinstance(value, bool | str) and 0 <= float(value) < math.inf
        except (TypeError, ValueError, OverflowError):
            usable = False
        if not usable:
            raise UserError(f"prefer: {task} = {value!r}: must be a number, zero or more")
    largest = max(prefer.values(), default=0)
    if largest <= 0:
        raise UserError(f"prefer: every task has 0: give one or more of {', '.join(tasks)} a number above 0")
    shares = {task: float(prefer.get(task, 0)) / float(largest) for task in tasks}  # the sum alone could overflow
    total = math.fsum(shares.values())
    return {task: share / total for task, share in shares.items()}


def decoder_widths(
    preference: Mapping[str, float], scale: float, available: Mapping[str, Sequence[float]]
) -> dict[str, float]:
    """The width of each task's decoder at `scale`, out of those `available`, which rise.

    w_t is the least width that is r_t · scale or more, the widest if none is, and the narrowest where p_t = 0. Where
    two tasks have the same widths available, the one preferred more is never the narrower.
    """
    ratios = _ratios(preference)
    return {task: available[task][_place(available[task], ratios[task], scale)] for task in preference}


def scales(preference: Mapping[str, float], available: Mapping[str, Sequence[float]]) -> tuple[float, ...]:
    """Rising scales, one for each of the different results that `decoder_widths` has over all scales above 0."""
    ratios = _ratios(preference)
    asked = {task: ratio for task, ratio in ratios.items() if ratio > 0}
    # Beyond each width but a task's widest, the task takes another; beyond the last of them all, nothing changes.
    steps = sorted(width / ratio for task, ratio in asked.items() for width in available[task][:-1])
    steps.append(max(available[task][-1] / ratio for task, ratio in asked.items()))
    # Of scales that differ by rounding only the last is kept: with it every task has what any of them gives it.
    return tuple(low for low, high in pairwise([*steps, math.inf]) if high > low * (1 + _ROUNDING))


def obedient_sets(preference: Mapping[str, float], available: Mapping[str, Sequence[float]]) -> np.ndarray:
    """The sets of decoder widths that obey `preference`, as places among the rising widths `available`: (sets, tasks).

    p_t > p_u > 0 implies that w_t is w_u or more, or the widest of t, or w_u the narrowest of u; where p_t = 0, w_t is
    the narrowest. So the set of all narrowest obeys any preference. Of more than `MOST_SETS` only those that
    `decoder_widths` has over all scales remain, and the set of all narrowest.

    The tasks are in the order of `preference`. The array may be shared and is not to be written to.
    """
    ratios = list(_ratios(preference).values())
    order = sorted({ratio for ratio in ratios if ratio > 0})
    ranks = tuple(order.index(ratio) if ratio > 0 else -1 for ratio in ratios)
    sets = _obedient_sets(ranks, tuple(tuple(available[task]) for task in preference))
    return _proportional_sets(preference, available) if sets is None else sets


class Chooser:
    """Chooses among `encoders`, which have decoders of the same tasks. What no preference changes is prepared once.

    A preference is normalised and has each of these tasks. May be used from several threads at once.
    """

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        self._tasks = tuple(encoders[0].decoders)
        # Encoders whose decoders have the same widths share their sets: these are found once for all of them.
        alike: dict[tuple[tuple[float, ...], ...], list[Encoder]] = {}
        for encoder in encoders:
            rows = (encoder.decoders[task] for task in self._tasks)
            alike.setdefault(tuple(tuple(decoder.width for decoder in row) for row in rows), []).append(encoder)
        self._tables = [_Table.of(same, self._tasks) for same in alike.values()]
        self.widest = max(e.cost + sum(e.decoders[task][-1].cost for task in self._tasks) for e in encoders)
        """The cost of the dearest encoder with the widest decoder of each task."""

    def choose(self, preference: Mapping[str, float], budget: float, unit: Unit = "MACs") -> Choice:
        """The combination within `budget`, in the costs' unit, that gains most; of equals the one that costs least.

        Raises `UserError` where nothing fits; it says what would.
        """
        sets, costs, gains = self._combinations(preference)
        # Every combination that obeys is looked at, in arrays: nothing better can be missed.
        fitting = np.flatnonzero(costs <= budget)
        if not fitting.size:
            raise UserError(self._refusal(budget, float(costs.min()), unit))
        best = fitting[gains[fitting] >= gains[fitting].max() - _TIE]
        return self._choice(sets, costs, gains, int(best[np.argmin(costs[best])]))

    def front(self, preference: Mapping[str, float]) -> list[Choice]:
        """The combinations that no other beats in cost and gain, from cheap to dear."""
        sets, costs, gains = self._combinations(preference)
        return [self._choice(sets, costs, gains, place) for place in pareto(costs, gains)]

    def _combinations(self, preference: Mapping[str, float]) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """The sets of each table, and the cost and gain of each set with each encoder, table after table."""
        weights = {task: preference[task] for task in self._tasks}
        # Cost and gain are sums of parts, an encoder's and each decoder's. A set picks a row of each task's (widths,
        # encoders) array, and the rows are added up:
        #
        #     set (0, 2)    costs[task 0][0]  =  [c, c, c]       one number for each encoder
        #                 + costs[task 1][2]  =  [c, c, c]
        sets = [obedient_sets(weights, table.widths) for table in self._tables]
        costs = [table.base + _summed(table.costs, of) for table, of in zip(self._tables, sets, strict=True)]
        gains = [
            _summed([p * column for p, column in zip(weights.values(), table.gains, strict=True)], of)
            for table, of in zip(self._tables, sets, strict=True)
        ]
        return sets, np.concatenate([c.ravel() for c in costs]), np.concatenate([g.ravel() for g in gains])

    def _choice(self, sets: Sequence[np.ndarray], costs: np.ndarray, gains: np.ndarray, place: int) -> Choice:
        cost, gain = float(costs[place]), float(gains[place])
        # The place counts through the flattened arrays, table after table, set by set, encoder by encoder: undone here.
        for table, of in zip(self._tables, sets, strict=True):
            if place < len(of) * len(table.names):
                break
            place -= len(of) * len(table.names)
        row, number = divmod(place, len(table.names))
        widths = {task: table.widths[task][at] for task, at in zip(self._tasks, of[row], strict=True)}
        return Choice(table.names[number], widths, cost, gain)

    def _refusal(self, budget: float, least: float, unit: Unit) -> str:
        widest = self.widest
        share = f" ({100 * least / widest:.0f} % of the widest, {_amount(widest, widest, unit)})" if widest > 0 else ""
        return (
            f"budget {_amount(budget, widest, unit)} is under the least that can run: "
            f"{_amount(least, widest, unit)}{share}; raise the budget or run fewer tasks"
        )


def pareto(costs: np.ndarray, values: np.ndarray) -> list[int]:
    """The places of the points that no other beats, by rising cost and so by rising value.

    A point is beaten by one that costs no more and is worth no less; of equal points the first stays.
    """
    # Rising cost, the best first among equals: a point is on the front if it is worth more than all before it.
    order = np.lexsort((-values, costs))
    reached = np.maximum.accumulate(values[order])
    return [int(place) for place in order[values[order] > np.concatenate([[-np.inf], reached])[:-1]]]


def spaced(front: Sequence[Choice], step: float = STEP) -> list[Choice]:
    """The first and last of `front`, which rises in cost, and between them each that costs `step` less than the next.

    From the dear end down, each time the dearest that is cheap enough. Where the first two would be nearer to each
    other than `step`, the first alone remains, unless the other is the last.
    """
    kept = [front[-1]]
    for choice in reversed(front[:-1]):
        if choice.cost <= (1 - step) * kept[-1].cost:
            kept.append(choice)
    if kept[-1] is not front[0]:
        kept[max(len(kept) - 1, 1) :] = [front[0]]
    return kept[::-1]


@dataclass(frozen=True)
class _Table:
    """Encoders whose decoders have the same widths. `costs` and `gains` are (widths, encoders) arrays by task."""

    names: tuple[str, ...]
    widths: Mapping[str, tuple[float, ...]]
    base: np.ndarray
    costs: tuple[np.ndarray, ...]
    gains: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, encoders: Sequence[Encoder], tasks: Sequence[str]) -> _Table:
        columns = [list(zip(*(encoder.decoders[task] for encoder in encoders), strict=True)) for task in tasks]
        return cls(
            tuple(encoder.name for encoder in encoders),
            {task: tuple(decoder.width for decoder in encoders[0].decoders[task]) for task in tasks},
            np.array([encoder.cost for encoder in encoders], float),
            tuple(np.array([[d.cost for d in row] for row in column], float) for column in columns),
            tuple(np.array([[d.gain for d in row] for row in column], float) for column in columns),
        )


def _summed(columns: Sequence[np.ndarray], sets: np.ndarray) -> np.ndarray:
    """What each set adds up to with each encoder, from one (widths, encoders) array for each task: (sets, encoders)."""
    total = np.zeros((len(sets), columns[0].shape[1]))
    for column, places in zip(columns, sets.T, strict=True):
        total += column.take(places, axis=0)
    return total


@lru_cache(maxsize=16)
def _obedient_sets(ranks: tuple[int, ...], widths: tuple[tuple[float, ...], ...]) -> np.ndarray | None:
    """All sets for tasks that rank so, -1 without a preference; None if they are more than `MOST_SETS`."""
    # Sets grow task by task, from the least preferred to the most; each row of `sets` is one with the tasks so far:
    #
    #     rank 0, widths .25 .5 1        {.25}      {.5}      {1}
    #     rank 1, no narrower          .25 .5 1     .5 1       1       .25 of rank 0 is its narrowest and binds no one
    sets = np.zeros((1, len(ranks)), np.intp)
    below = np.zeros(1)  # by set, the widest of the lower ranks that could be narrower
    for rank in range(max(ranks) + 1):
        # Tasks of one rank do not bind each other: the bound moves on only when all of them are placed.
        highest = below
        for task in (task for task, of in enumerate(ranks) if of == rank):
            options = np.array(widths[task])
            allowed = options >= below[:, None]
            # A task whose widest is narrower than the bound has its widest, and obeys with that.
            allowed[:, -1] = True
            # Every part of a set can be completed, so that the sets are never fewer than the parts.
            if np.count_nonzero(allowed) > MOST_SETS:
                return None
            rows, places = np.nonzero(allowed)
            sets, below = sets[rows], below[rows]
            highest = np.maximum(highest[rows], np.where(places > 0, options[places], 0.0))
            sets[:, task] = places
        below = highest
    sets.flags.writeable = False
    return sets


def _proportional_sets(preference: Mapping[str, float], available: Mapping[str, Sequence[float]]) -> np.ndarray:
    ratios = _ratios(preference)
    sets = [
        [_place(available[task], ratio, scale) for task, ratio in ratios.items()]
        for scale in scales(preference, available)
    ]
    return np.unique(np.array([[0] * len(ratios), *sets], np.intp), axis=0)


def _place(widths: Sequence[float], ratio: float, scale: float) -> int:
    return min(bisect_left(widths, ratio * scale * (1 - _ROUNDING)), len(widths) - 1)


def _ratios(preference: Mapping[str, float]) -> dict[str, float]:
    """r_t by task; 0 where it is so small that a scale which reaches it means nothing."""
    largest = max(preference.values())
    return {task: value / largest if value > _TIE * largest else 0.0 for task, value in preference.items()}


def _amount(cost: float, widest: float, unit: Unit) -> str:
    """`cost` in the unit that suits `widest`, so that the numbers of a message compare."""
    if unit == "ms":
        return f"{cost:.4g} ms"
    power = max((p for p in range(len(_PREFIXES)) if widest >= 1000**p), default=0)
    return f"{cost / 1000**power:.4g} {_PREFIXES[power]}MACs"
