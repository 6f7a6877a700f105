"""Compares two methods over the same seeds: mean difference, its spread, wins, and Student's paired t-test."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from scipy import stats


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[str, Any] | None:
    """What `ours` − `theirs` is over the seeds that both have; None where they share none.

    `p` is the two-sided probability of a mean difference as large if there were none (paired t-test, n − 1 degrees of
    freedom); None for a single seed. Differences that are all the same have p = 0, or 1 where they are all 0.
    """
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    mean = statistics.fmean(differences)
    spread = statistics.stdev(differences) if len(seeds) > 1 else None
    return {
        "seeds": seeds,
        "difference_mean": mean,
        "difference_std": spread,
        "wins": sum(d > 0 for d in differences),
        "losses": sum(d < 0 for d in differences),
        "p": None if spread is None else _two_sided(mean, spread, len(seeds)),
    }


def _two_sided(mean: float, spread: float, count: int) -> float:
    if spread == 0:
        return 1.0 if mean == 0 else 0.0
    t = mean / (spread / math.sqrt(count))
    return float(2 * stats.t.sf(abs(t), count - 1))
