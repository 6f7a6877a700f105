"""Two bundles on the same samples: metrics, differences with their intervals, and limits that ask for confidence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mtlc.evaluation.criteria import Criteria
from mtlc.results.tasks import chance_warning, confidence_doubt
from mtlc.results.verify import ComparedTask
from mtlc.tasks.metric import Metric
from mtlc.tasks.task import Limit, TaskSpec
from mtlc.workflows.measured_pair import MeasuredPair

VALUE = TaskSpec("value", "mse", "mse")
ERRORS = np.ones(40)
WORSE = ERRORS + 0.1
MIXED = ERRORS + np.array([0.9, -0.8] * 20)
"""0.05 more on average, and by chance more than 0.1 in a third of the draws."""


def measured(first: np.ndarray, *tasks: TaskSpec, reference: np.ndarray = ERRORS, seed: int = 3) -> MeasuredPair:
    """Outputs whose squared errors are given, in batches of 8."""
    pair = MeasuredPair(Criteria(tasks), "calibration", seed)
    for start in range(0, len(reference), 8):
        outputs = [np.sqrt(errors[start : start + 8])[:, None, None, None] for errors in (first, reference)]
        one, other = ({task.name: output.astype(np.float32) for task in tasks} for output in outputs)
        count = len(one[tasks[0].name])
        pair.update(one, other, {task.target_key: torch.zeros(count, 1, 1, 1) for task in tasks})
    return pair


def row(first: np.ndarray, task: TaskSpec, **more) -> ComparedTask:
    found = measured(first, task, **more).found()[task.name]
    return ComparedTask.model_validate({"max_abs": 0, "max_rel": 0, "mean_rel": 0, "why": None, "near_ties": 0} | found)


def limited(drop: float, confidence: float | None = None) -> TaskSpec:
    return replace(VALUE, max_drop=Limit(drop, False, confidence))


def test_a_difference_has_an_interval():
    same = row(WORSE, VALUE)
    assert (same.value, same.reference) == (pytest.approx(1.1), pytest.approx(1.0))
    assert same.difference == pytest.approx(0.1)
    change = same.change_interval
    assert (change.low, change.high) == (pytest.approx(0.1), pytest.approx(0.1))
    assert (change.samples, change.draws, change.confidence) == (40, 1000, 0.95)
    assert (same.within, same.kept_in, same.by_chance, same.no_interval) == (None, None, None, None)
    mixed = row(MIXED, VALUE).change_interval  # the standard error of the mean is 0.134
    assert mixed.low == pytest.approx(0.05 - 1.96 * 0.134, abs=0.04)
    assert mixed.high == pytest.approx(0.05 + 1.96 * 0.134, abs=0.04)
    assert row(MIXED, VALUE).change_interval == mixed
    assert row(MIXED, VALUE, seed=4).change_interval != mixed


@pytest.mark.parametrize(
    ("first", "task", "within", "by_chance", "keeps"),
    [
        (WORSE, limited(0.2, 0.95), True, False, True),
        (WORSE, limited(0.05), False, False, False),
        (MIXED, limited(0.1), True, True, True),
        (MIXED, limited(0.1, 0.5), True, True, True),
        (MIXED, limited(0.1, 0.95), False, True, True),
        (MIXED, limited(0.02, 0.3), False, False, False),
        (MIXED, limited(1.0, 0.95), True, False, True),
    ],
)
def test_a_limit_is_kept_with_the_confidence_that_it_asks_for(first, task, within, by_chance, keeps):
    found = row(first, task)
    assert (found.within, found.by_chance) == (within, by_chance)
    assert measured(first, task).keeps("value") is keeps
    line = chance_warning("value", found, found.difference, "calibration")
    if within and by_chance:
        assert 0.5 < found.kept_in < 0.75
        assert line == (
            f"task 'value' keeps its limit of {task.max_drop} by chance: mse changes by +0.05, "
            f"{found.change_interval.words()}, over 40 labelled calibration samples; {100 * found.kept_in:.0f} % of "
            "draws keep it"
        )
    else:
        assert line is None
    if keeps and not within:
        assert confidence_doubt(found) == f"only in {100 * found.kept_in:.1f} % of draws from its samples"


class Told(Metric):
    """A metric that does not say what samples add to it."""

    higher_is_better, unit, kind = True, "", "unknown"

    def update(self, output, target) -> None:
        pass

    def compute(self) -> float:
        return 1.0


def test_why_nothing_is_known_is_said():
    task = replace(limited(0.1), metric=f"{__name__}:Told")
    found = row(MIXED, task)
    assert found.no_interval == f"{__name__}:Told does not say what each sample adds to it"
    assert (found.within, found.change_interval, found.kept_in) == (True, None, None)
    assert chance_warning("value", found, 0.0) == (
        f"task 'value' keeps its limit of 0.1, but by how much of chance is not known: {found.no_interval}"
    )
    one = row(WORSE[:1], limited(0.2), reference=ERRORS[:1])
    assert one.no_interval == "one calibration sample has a label"


def test_tasks_are_judged_each_by_itself():
    other = replace(limited(0.1, 0.95), name="other", target="other")
    found = measured(MIXED, limited(0.1), other).found()
    assert (found["value"]["within"], found["other"]["within"]) == (True, False)
    assert found["value"]["kept_in"] == found["other"]["kept_in"]
