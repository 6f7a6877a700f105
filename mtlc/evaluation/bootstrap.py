"""Says how far a metric, or its change, is a matter of which samples a split happens to hold: by the bootstrap.

A draw takes as many samples as there are, with replacement; two networks are compared on the same draws, so that what
is hard for both does not count as a difference (paired percentile bootstrap: Efron and Tibshirani, An Introduction to
the Bootstrap, 1993, chapters 8 and 13). A task's draws are of its labelled samples. Draws for several tasks at once
are of the samples that have labels of the same tasks, group by group, so each task keeps its number of samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtlc.evaluation.evaluate import Evaluation
from mtlc.evaluation.sample_statistics import SampleStatistics
from mtlc.tasks.task import Limit, TaskSpec

DRAWS = 1000
CONFIDENCE = 0.95
_VALUES = 1 << 22
"""So many numbers of how often a sample is drawn are in memory at once."""

Statistics = Mapping[str, SampleStatistics]
"""Of some tasks, what each sample adds to the metric: `Evaluation.statistics`."""
Pair = tuple[np.ndarray, np.ndarray]
"""The metric of two networks, before and after, in each draw: (R,) and (R,)."""


@dataclass(frozen=True)
class Interval:
    """Between `low` and `high` lies a value with `confidence`, as drawn `draws` times from `samples` samples."""

    low: float
    high: float
    confidence: float
    samples: int
    draws: int


def interval(values: np.ndarray, samples: int, confidence: float = CONFIDENCE) -> Interval | None:
    """The middle of drawn values (R,), without what is not finite. None of one sample, and where more than half of the
    draws gave no number: then nothing is known.
    """
    known = values[np.isfinite(values)]
    if samples < 2 or 2 * len(known) < len(values) or not len(known):
        return None
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), confidence, samples, len(known))


def drawn(statistics: Statistics, task: str, seed: int = 0, draws: int = DRAWS) -> np.ndarray | None:
    """A task's metric in each draw, (R,); None where what samples add to it was not kept."""
    known = statistics.get(task)
    if known is None:
        return None
    return np.concatenate([known.metrics(known.rows, w) for w in _weights([known.rows], seed, draws)])


def drawn_pairs(
    before: Statistics, after: Statistics, tasks: Iterable[str], seed: int = 0, draws: int = DRAWS
) -> dict[str, Pair] | None:
    """The tasks' metrics of both networks in the same draws, of the samples that both were measured on.

    None where what samples add was not kept of some task.
    """
    known: dict[str, tuple[SampleStatistics, SampleStatistics, np.ndarray]] = {}
    for task in tasks:
        one, other = before.get(task), after.get(task)
        if one is None or other is None:
            return None
        known[task] = one, other, np.intersect1d(one.rows, other.rows)
        if not len(known[task][2]):
            return None
    everything = np.unique(np.concatenate([rows for _, _, rows in known.values()]))
    places = {task: np.searchsorted(everything, rows) for task, (_, _, rows) in known.items()}
    found: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {task: ([], []) for task in known}
    for weights in _weights([rows for _, _, rows in known.values()], seed, draws):
        for task, (one, other, rows) in known.items():
            part = weights[:, places[task]]
            found[task][0].append(one.metrics(rows, part))
            found[task][1].append(other.metrics(rows, part))
    return {task: (np.concatenate(one), np.concatenate(other)) for task, (one, other) in found.items()}


def drawn_delta_m(pairs: Mapping[str, Pair], higher_is_better: Mapping[str, bool]) -> np.ndarray:
    """Δm in percent (`mtlc.tasks.task.delta_m`) in each draw, (R,)."""
    gains = [_relative_gains(pair, higher_is_better[task]) for task, pair in pairs.items()]
    result: np.ndarray = 100 * np.mean(gains, axis=0)
    return result


def drawn_gain(
    pairs: Mapping[str, Pair], higher_is_better: Mapping[str, bool], preference: Mapping[str, float]
) -> np.ndarray:
    """Σ p · g in each draw, (R,): the tasks' relative gains as a share, above zero better, weighed by `preference`."""
    gains = [preference[task] * _relative_gains(pair, higher_is_better[task]) for task, pair in pairs.items()]
    result: np.ndarray = np.sum(gains, axis=0)
    return result


def share_kept(limit: Limit, pair: Pair, higher_is_better: bool) -> float:
    """The share of draws, 0 to 1, in which a limit is kept; one that gave no number counts as one that does not."""
    before, after = pair
    kept = [limit.allows(float(one), float(other), higher_is_better) for one, other in zip(before, after, strict=True)]
    return float(np.mean(kept))


def keeps_limit(task: TaskSpec, before: Evaluation, after: Evaluation, higher_is_better: bool, seed: int = 0) -> bool:
    """Whether a task keeps its `max_drop`, also in the share of draws that this asks for, if it does; True without."""
    limit = task.max_drop
    if limit is None:
        return True
    if not limit.allows(before.metrics[task.name], after.metrics[task.name], higher_is_better):
        return False
    if limit.confidence is None:
        return True
    pairs = drawn_pairs(before.statistics, after.statistics, [task.name], seed)
    return pairs is not None and share_kept(limit, pairs[task.name], higher_is_better) >= limit.confidence


def _relative_gains(pair: Pair, higher_is_better: bool) -> np.ndarray:
    before, after = pair
    with np.errstate(divide="ignore", invalid="ignore"):
        gain: np.ndarray = (after - before) / np.abs(before)
    return gain if higher_is_better else -gain


def _weights(rows: Sequence[np.ndarray], seed: int, draws: int) -> Iterator[np.ndarray]:
    """How often each sample that is in some of the `rows` is drawn, (r, n), in all `draws` times.

    Samples that are in the same of the `rows` are drawn among themselves.
    """
    everything = np.unique(np.concatenate(rows))
    member = np.stack([np.isin(everything, some) for some in rows], 1)
    _, group = np.unique(member, axis=0, return_inverse=True)
    groups = [np.flatnonzero(group.reshape(-1) == index) for index in range(int(group.max()) + 1)]
    generators = np.random.default_rng(seed).spawn(len(groups))
    at_once = max(1, _VALUES // len(everything))
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        weights = np.zeros((count, len(everything)))
        for places, generator in zip(groups, generators, strict=True):
            size = len(places)
            picked = generator.integers(size, size=(count, size)) + size * np.arange(count)[:, None]
            weights[:, places] = np.bincount(picked.reshape(-1), minlength=count * size).reshape(count, size)
        yield weights
