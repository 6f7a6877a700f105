"""Says how far each task's change, and Δm or the gain of a search, is a matter of which samples there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mtlc.evaluation.bootstrap import (
    CONFIDENCE,
    Pair,
    drawn,
    drawn_delta_m,
    drawn_gain,
    drawn_pairs,
    interval,
    share_kept,
)
from mtlc.evaluation.evaluate import Evaluation
from mtlc.evaluation.label_check import SPLITS
from mtlc.results.tasks import IntervalResult, LabelledSamples
from mtlc.tasks.task import Limit, TaskSpec
from mtlc.workflows.opened_job import Opened

FEW = 20
"""With fewer labelled samples than this a limit is warned of beforehand."""


@dataclass(frozen=True)
class Chances:
    """What is `found` of a task, as fields of its result, and whether it is as `confident` as its limit asks for."""

    found: dict[str, Any]
    confident: bool


class Draws:
    """The metrics of two networks, such as the original and the compressed one, in draws of the samples of a split that
    both `evaluations` are of.
    """

    def __init__(self, evaluations: tuple[Evaluation, Evaluation], tasks: Sequence[str], seed: int) -> None:
        self.evaluations, self.seed = evaluations, seed
        before, after = self.evaluations
        self.together = drawn_pairs(before.statistics, after.statistics, tasks, seed)
        rows = [before.statistics[task].rows for task in tasks] if self.together is not None else []
        # Draws for several tasks that have labels of the same samples are those for each of them: no need to draw anew.
        self._alike = bool(rows) and all(np.array_equal(rows[0], other) for other in rows)

    def of(self, task: str) -> Pair | None:
        """One task's, of all samples that have a label of it; None where what these add was not kept."""
        if self._alike and self.together is not None and task in self.together:
            return self.together[task]
        before, after = self.evaluations
        pairs = drawn_pairs(before.statistics, after.statistics, [task], self.seed)
        return None if pairs is None else pairs[task]

    def change(self, task: str) -> IntervalResult | None:
        """Where the change of a task's metric lies; None where that is not known."""
        pair = self.of(task)
        if pair is None:
            return None
        found = interval(pair[1] - pair[0], min(one.labelled[task] for one in self.evaluations))
        return None if found is None else IntervalResult(**asdict(found))


def task_chances(task: TaskSpec, opened: Opened, draws: Draws) -> Chances:
    """The interval of a task's change, and how often a draw of the validation samples keeps its limit."""
    known = change_chances(task, draws, opened.criteria.higher_is_better[task.name])
    return replace(known, found={"samples": labelled_samples(opened, task.name)} | known.found)


def change_chances(task: TaskSpec, draws: Draws, better: bool, split: str = "validation") -> Chances:
    """The interval of a task's change, where larger values are `better` or not, and how often a draw of the samples of
    `split` keeps its limit.
    """
    name, limit = task.name, task.max_drop
    before, after = draws.evaluations
    confident = limit is None or limit.confidence is None
    pair, count = draws.of(name), min(before.labelled[name], after.labelled[name])
    if pair is None:
        return Chances({"no_interval": f"{task.metric} does not say what each sample adds to it"}, confident)
    one, other = pair
    change = draws.change(name)
    if change is None:
        few = f"one {split} sample has a label" if count == 1 else "most draws of the samples give no number"
        return Chances({"no_interval": few}, confident)
    found: dict[str, Any] = {"change_interval": change}
    if limit is not None:
        share = share_kept(limit, pair, better)
        kept = limit.allows(before.metrics[name], after.metrics[name], better)
        found |= {"kept_in": share, "by_chance": kept and _reaches_over(limit, one, other, better, count)}
        confident = limit.confidence is None or share >= limit.confidence
    return Chances(found, confident)


def delta_m_intervals(
    draws: Draws, single: Mapping[str, float] | None, better: Mapping[str, bool]
) -> dict[str, IntervalResult]:
    """The intervals of Δm against the original, and against the `single` metrics of one network per task, as fields of
    `mtlc.results.tasks.DeltaM`; those that are not known are left out.
    """
    before, after = draws.evaluations
    pairs = draws.together
    if pairs is None:
        return {}
    samples = min(after.labelled[task] for task in better)
    values = {"vs_original": pairs} if all(before.metrics[task] for task in better) else {}
    if single is not None and all(single.values()):
        for name, side in (("vs_single_task", 1), ("original_vs_single_task", 0)):
            values[name] = {task: (np.full_like(pair[0], single[task]), pair[side]) for task, pair in pairs.items()}
    known = {name: interval(drawn_delta_m(of, better), samples) for name, of in values.items()}
    return {f"{name}_interval": IntervalResult(**asdict(found)) for name, found in known.items() if found is not None}


def gain_interval(
    evaluations: tuple[Evaluation, Evaluation], better: Mapping[str, bool], preference: Mapping[str, float], seed: int
) -> IntervalResult | None:
    """The interval of the gain of a network over another, as a share: Σ p · g over the tasks that are worth something.

    None where what samples add was not kept of one of these, and where a metric to divide by is 0.
    """
    before, after = evaluations
    worth = [task for task, value in preference.items() if value > 0]
    pairs = drawn_pairs(before.statistics, after.statistics, worth, seed)
    if pairs is None or not all(before.metrics[task] for task in worth):
        return None
    samples = min(one.labelled[task] for one in evaluations for task in worth)
    found = interval(drawn_gain(pairs, better, preference), samples)
    return None if found is None else IntervalResult(**asdict(found))


def few_labels(opened: Opened, original: Evaluation) -> list[str]:
    """That a task has few labelled validation samples for its limit, with the interval of the original's metric."""
    lines = []
    for task in opened.program.tasks:
        count, value = original.labelled[task.name], original.metrics[task.name]
        if task.max_drop is None or count >= FEW:
            continue
        values = drawn(original.statistics, task.name, opened.job.seed)
        known = None if values is None else interval(values, count)
        unit = f" {opened.criteria.units[task.name]}".rstrip()
        where = "" if known is None else f", {100 * CONFIDENCE:g} % interval {known.low:.4g} to {known.high:.4g}"
        lines.append(
            f"task {task.name!r} has {count} labelled validation sample{'' if count == 1 else 's'}, few for its limit "
            f"of {task.max_drop}: {task.metric} is {value:.4g}{unit}{where}"
        )
    return lines


def labelled_samples(opened: Opened, task: str) -> LabelledSamples | None:
    """How many samples have a label of a task; None where they were not counted."""
    counts = opened.splits.labelled
    if counts is None:
        return None
    return LabelledSamples(**{split: counts[split][task] for split in SPLITS})


def _reaches_over(limit: Limit, before: np.ndarray, after: np.ndarray, better: bool, samples: int) -> bool:
    """Whether the interval of what is left of a limit goes below nothing."""
    sign = 1 if better else -1
    allowed = np.array([limit.allowance(float(value)) for value in before])
    left = interval(sign * (after - before) + allowed, samples)
    return left is not None and left.low < -1e-9 * max(1.0, float(np.nanmax(np.abs(before))))
