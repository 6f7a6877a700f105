"""Works out how many times as fast one network is as another, from times that were measured in turns, with its spread.

The one statistic for this everywhere: the median over the rounds of first / other. A change of clock or load meets both
times of a round, and so not their ratio. Where it does not hold still even so, `doubt` says why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtlc.results.latency import contradiction

WIDE = 0.1
"""Width of the 95 % interval of a median, relative to it, from which on a figure is in doubt: ±5 %."""
SPREAD = 0.5
"""(p90 − p10) / median of the rounds from which on a ratio is in doubt."""
_QUANTILE = 1.959964  # of the normal distribution, for 95 % on both sides


def paired_ratio(
    first_ms: Sequence[float], other_ms: Sequence[float],
    first_cpu_ms: Sequence[float] = (), other_cpu_ms: Sequence[float] = (),
) -> dict[str, Any]:  # fmt: skip
    """``median``, ``p10`` and ``p90`` over the rounds of first / other.

    ``low`` and ``high`` are the 95 % interval of the median, ``cpu`` is the median of the same ratio by processor time
    (None where it is not known), ``doubt`` says in a line why the median says little (None if it is sound).

    Args:
        first_ms, other_ms: the times of both by the clock, in ms, an entry a round.
        first_cpu_ms, other_cpu_ms: their processor times, likewise.
    """
    ratios = np.asarray(first_ms, float) / np.asarray(other_ms, float)
    p10, median, p90 = (float(value) for value in np.percentile(ratios, (10, 50, 90)))
    low, high = interval_of_median(ratios)
    found = {"median": median, "p10": p10, "p90": p90, "low": low, "high": high}
    cpu = None
    if len(first_cpu_ms) and all(other_cpu_ms) and all(first_cpu_ms):  # 0: a clock that is too coarse for the call
        cpu = float(np.median(np.asarray(first_cpu_ms) / np.asarray(other_cpu_ms)))
    why = contradiction(median, float(np.median(first_ms)), float(np.median(other_ms)))
    return {**found, "cpu": cpu, "doubt": why or doubt(median, (low, high), (p10, p90), len(ratios))}


def interval_of_median(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the median of the distribution that `values` are from, without assuming its form.

    It goes from the value of rank n/2 − 0.98 √n to that of rank 1 + n/2 + 0.98 √n, of few values from the least to the
    largest (W. J. Conover, Practical Nonparametric Statistics, 3rd ed., section 3.2). It takes the values for
    independent of each other: bursts of load make it too narrow.
    """
    ordered, count = np.sort(np.asarray(values, float)), len(values)
    half = _QUANTILE * math.sqrt(count) / 2
    lower, upper = math.floor(count / 2 - half), math.ceil(1 + count / 2 + half)
    return float(ordered[max(lower, 1) - 1]), float(ordered[min(upper, count) - 1])


def is_narrow(values: Sequence[float] | np.ndarray) -> bool:
    """Whether the median of `values` is known to within ±5 %."""
    low, high = interval_of_median(values)
    return (high - low) <= WIDE * float(np.median(values))


def doubt(median: float, interval: tuple[float, float], spread: tuple[float, float], rounds: int) -> str | None:
    """Why a ratio over so many rounds says little, by its 95 % interval and by p10 and p90, in a line; None if it is
    sound.
    """
    low, high = interval
    p10, p90 = spread
    if high - low > WIDE * median:
        return f"after {rounds} rounds the ratio lies between {low:.2f}x and {high:.2f}x"
    if p90 - p10 > SPREAD * median:
        return f"the rounds differ: one in ten is below {p10:.2f}x, one in ten above {p90:.2f}x"
    return None
