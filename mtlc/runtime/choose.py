"""Which widths to run: from a preference over the tasks and a budget to an encoder and a width for every decoder.

Our rule, in the manner of ECMT (Aich et al., "Efficient Controllable Multi-Task Architectures", ICCV 2023): decoders by
preference, encoder by what is left. Task t with preference p_t (they sum to 1) has r_t = p_t / max p. For a scale s, its
decoder takes the least width that is r_t · s or more. Over all encoders and all scales, the combination within the
budget is taken whose preference-weighted relative gain Σ p_t · g_t is largest, where g_t is the signed relative change
of the task's metric against the widest network.

Costs add up, an encoder's and its decoders', in whichever unit: MACs or ms.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from mtlc.errors import UserError, nearest

Unit = Literal["MACs", "ms"]

_TIE = 1e-12
_ROUNDING = 1e-9  # r_t · (w / r_t) is not always w
_QUANTITY = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([kKMG]?)\s*([A-Za-z]*|%)\s*$")
_PREFIXES = ("", "k", "M", "G")


@dataclass(frozen=True)
class Decoder:
    """A task's decoder at one width, behind one encoder. `gain` is `relative_gain` of the task's metric with the two."""

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
class Budget:
    """What a run may cost: MACs or ms, or a share (0 to 1) of the MACs of the widest configuration."""

    value: float
    unit: Unit | Literal["share"]

    @classmethod
    def parse(cls, text: str | float) -> Budget:
        """Read ``"40%"``, ``"25MMACs"``, ``"25M"``, ``25e6`` (MACs) or ``"12ms"``. Raises `UserError`."""
        shown = repr(text)
        refusal = UserError(f'budget = {shown}: write "40%", "25MMACs", 25000000 or "12ms"')
        match = _QUANTITY.match(text) if isinstance(text, str) else None
        if isinstance(text, bool) or (isinstance(text, str) and match is None):
            raise refusal
        try:
            number = float(match[1]) if match else float(text)
        except (TypeError, ValueError, OverflowError):
            raise refusal from None
        prefix, suffix = (match[2], match[3]) if match else ("", "")
        if suffix == "%":
            if prefix or not 0 < number <= 100:
                raise UserError(f"budget = {shown}: a share is above 0% and at most 100%")
            return cls(number / 100, "share")
        unit: Unit = "ms" if suffix in ("ms", "s") else "MACs"
        if unit == "ms":
            if prefix:
                raise refusal
            number *= 1000 if suffix == "s" else 1
        elif match is not None:
            if suffix.lower() not in ("", "macs") or prefix == "K":  # a thousand is a small k
                raise refusal
            number *= 1000.0 ** _PREFIXES.index(prefix)
        if not 0 < number < math.inf:
            raise UserError(f"budget = {shown}: must be more than zero")
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

    w_t is the least width that is r_t · scale or more, the widest if none is, and the narrowest where p_t = 0. Where two
    tasks have the same widths available, the one preferred more is never the narrower.
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


def candidates(encoders: Sequence[Encoder], preference: Mapping[str, float]) -> list[Choice]:
    """All that `choose` chooses from: every encoder at every scale. Tasks without a preference do not count."""
    return [_choice(encoders, preference, tried) for tried in _tries(encoders, preference)]


def choose(encoders: Sequence[Encoder], preference: Mapping[str, float], budget: float, unit: Unit = "MACs") -> Choice:
    """The candidate within `budget`, in the unit of the costs, that gains most; of equals the one that costs least.

    `preference` is normalised and has every task that runs. Raises `UserError` where nothing fits; it says what would.
    """
    tries = list(_tries(encoders, preference))
    fitting = [tried for tried in tries if tried[0] <= budget]
    if not fitting:
        least, widest = min(tried[0] for tried in tries), widest_cost(encoders, preference)
        share = f" ({100 * least / widest:.0f} % of the widest, {_amount(widest, widest, unit)})" if widest > 0 else ""
        raise UserError(
            f"budget {_amount(budget, widest, unit)} is under the least that can run: "
            f"{_amount(least, widest, unit)}{share}; raise the budget or run fewer tasks"
        )
    best = max(tried[1] for tried in fitting) - _TIE
    return _choice(encoders, preference, min((tried for tried in fitting if tried[1] >= best), key=lambda t: t[0]))


def widest_cost(encoders: Sequence[Encoder], tasks: Iterable[str]) -> float:
    """The cost of the dearest encoder with the widest decoder of each task."""
    tasks = list(tasks)
    return max(encoder.cost + sum(encoder.decoders[task][-1].cost for task in tasks) for encoder in encoders)


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of the (cost, value) points that no other beats, by rising cost and so by rising value.

    A point is beaten by one that costs no more and is worth no less; of equal points the first stays.
    """
    front: list[int] = []
    for place in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[place][1] > points[front[-1]][1]:
            front.append(place)
    return front


_Try = tuple[float, float, int, tuple[int, ...]]
"""Cost, gain, the encoder's place, and the place of each task's width."""


def _tries(encoders: Sequence[Encoder], preference: Mapping[str, float]) -> Iterator[_Try]:
    tasks = list(preference)
    known: dict[tuple[tuple[float, ...], ...], list[tuple[int, ...]]] = {}
    for number, encoder in enumerate(encoders):
        rows = [encoder.decoders[task] for task in tasks]
        widths = tuple(tuple(decoder.width for decoder in row) for row in rows)
        if widths not in known:  # most encoders have decoders of the same widths
            known[widths] = _places(preference, dict(zip(tasks, widths, strict=True)))
        costs = [[decoder.cost for decoder in row] for row in rows]
        gains = [
            [weight * decoder.gain for decoder in row] for weight, row in zip(preference.values(), rows, strict=True)
        ]
        for places in known[widths]:
            cost, gain = encoder.cost, 0.0
            for place, costs_of, gains_of in zip(places, costs, gains, strict=True):
                cost += costs_of[place]
                gain += gains_of[place]
            yield cost, gain, number, places


def _places(preference: Mapping[str, float], available: Mapping[str, Sequence[float]]) -> list[tuple[int, ...]]:
    ratios = _ratios(preference)
    return [
        tuple(_place(available[task], ratio, scale) for task, ratio in ratios.items())
        for scale in scales(preference, available)
    ]


def _place(widths: Sequence[float], ratio: float, scale: float) -> int:
    return min(bisect_left(widths, ratio * scale * (1 - _ROUNDING)), len(widths) - 1)


def _ratios(preference: Mapping[str, float]) -> dict[str, float]:
    """r_t by task; 0 where it is so small that a scale which reaches it means nothing."""
    largest = max(preference.values())
    return {task: value / largest if value > _TIE * largest else 0.0 for task, value in preference.items()}


def _choice(encoders: Sequence[Encoder], preference: Mapping[str, float], tried: _Try) -> Choice:
    cost, gain, number, places = tried
    encoder = encoders[number]
    widths = {task: encoder.decoders[task][place].width for task, place in zip(preference, places, strict=True)}
    return Choice(encoder.name, widths, cost, gain)


def _amount(cost: float, widest: float, unit: Unit) -> str:
    """`cost` in the unit that suits `widest`, so that the numbers of a message compare."""
    if unit == "ms":
        return f"{cost:.4g} ms"
    power = max((p for p in range(len(_PREFIXES)) if widest >= 1000**p), default=0)
    return f"{cost / 1000**power:.4g} {_PREFIXES[power]}MACs"
