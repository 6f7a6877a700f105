"""Intervals of metrics and their changes, by draws of samples, against recomputation and against sums by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit.partial_labels import TASKS, Listed, labelled, unlabelled

from mtlc.errors import UserError
from mtlc.evaluation.bootstrap import drawn, drawn_delta_m, drawn_pairs, interval, keeps_limit, share_kept
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.tasks.metric import Metric
from mtlc.tasks.task import Limit, TaskSpec, delta_m

BUILT_IN = [name for name in TASKS if name != "own"]


def said(batch):
    return dict.fromkeys((*TASKS, "other"), batch["said"])


def judged(samples, *tasks: TaskSpec, size: int = 4):
    return evaluate(said, Criteria(tasks), Listed(samples), size, keep=True)


@pytest.mark.parametrize("name", BUILT_IN)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_draw_has_the_metric_of_the_samples_that_are_drawn(name, data):
    """Of each metric of mtlc: as if a data set held sample i so many times."""
    samples = labelled(name, 5, data.draw(st.integers(0, 50)))
    times = data.draw(st.lists(st.integers(0, 3), min_size=5, max_size=5).filter(any))
    known = judged(samples, TASKS[name]).statistics[name]
    again = judged([sample for sample, count in zip(samples, times, strict=True) for _ in range(count)], TASKS[name])
    found = known.metrics(known.rows, np.array([[1.0] * 5, times]))
    assert found[0] == pytest.approx(judged(samples, TASKS[name]).metrics[name], rel=1e-9)
    assert found[1] == pytest.approx(again.metrics[name], rel=1e-9)


@pytest.mark.parametrize("name", BUILT_IN)
def test_intervals_do_not_change_with_unlabelled_samples(name):
    alone, others = labelled(name, 6, 0), [unlabelled(name, None, seed) for seed in range(3)]
    among = [others[0], *alone[:2], others[1], *alone[2:], others[2]]
    one, other = judged(alone, TASKS[name]), judged(among, TASKS[name], size=3)
    assert other.statistics[name].rows.tolist() == [1, 2, 4, 5, 6, 7]
    assert np.array_equal(drawn(one.statistics, name, 7, 50), drawn(other.statistics, name, 7, 50), equal_nan=True)


def values(*errors: float, shift: float = 0.0):
    """Samples whose squared errors are known."""
    zero = torch.zeros(1, 1, 1)
    return [{"said": torch.full((1, 1, 1), math.sqrt(error + shift)), "value": zero} for error in errors]


VALUE = TASKS["value"]


def test_an_interval_is_that_of_the_mean_of_many():
    """Mean squared errors, 200 of them: the standard error of the mean, and 1.96 of it to each side."""
    errors = torch.rand(200, generator=torch.Generator().manual_seed(0)).tolist()
    found = drawn(judged(values(*errors), VALUE).statistics, "value", 3, 2000)
    known = interval(found, 200)
    middle, spread = np.mean(errors), np.std(errors) / math.sqrt(200)
    assert known.low == pytest.approx(middle - 1.96 * spread, abs=0.15 * spread)
    assert known.high == pytest.approx(middle + 1.96 * spread, abs=0.15 * spread)
    assert (known.confidence, known.samples, known.draws) == (0.95, 200, 2000)
    assert np.array_equal(found, drawn(judged(values(*errors), VALUE).statistics, "value", 3, 2000))
    assert not np.array_equal(found, drawn(judged(values(*errors), VALUE).statistics, "value", 4, 2000))


def test_two_networks_are_compared_on_the_same_draws():
    """The second is worse by 0.1 at every sample: nothing is uncertain about that, however the samples differ."""
    errors = [0.0, 5.0, 1.0, 9.0, 2.0]
    before, after = judged(values(*errors), VALUE), judged(values(*errors, shift=0.1), VALUE)
    pair = drawn_pairs(before.statistics, after.statistics, ["value"])["value"]
    change = interval(pair[1] - pair[0], 5)
    assert (change.low, change.high) == (pytest.approx(0.1, abs=1e-6), pytest.approx(0.1, abs=1e-6))
    assert np.std(pair[0]) > 0.5


def test_only_samples_that_both_were_measured_on_count():
    before, after = judged(values(1, 2, 3, 100), VALUE), judged(values(1, 2, 3), VALUE)
    one, other = drawn_pairs(before.statistics, after.statistics, ["value"])["value"]
    assert np.array_equal(one, other)
    assert one.max() <= 3 + 1e-6


def test_delta_m_in_draws():
    """Two tasks on samples of their own: each keeps its number, and Δm of each draw is that of its metrics."""
    other = replace(VALUE, name="other", target="other")
    mixed = [
        *values(1, 2, 3),
        *({"said": sample["said"], "other": sample["value"]} for sample in values(4, 5)),
    ]
    before = judged(mixed, VALUE, other)
    after = evaluate(lambda batch: dict.fromkeys(("value", "other"), 2 * batch["said"]), Criteria([VALUE, other]),
                     Listed(mixed), keep=True)  # fmt: skip
    pairs = drawn_pairs(before.statistics, after.statistics, ["value", "other"], 1, 20)
    better = {"value": False, "other": False}
    found = drawn_delta_m(pairs, better)
    assert found == pytest.approx(np.full(20, -300.0), rel=1e-6)  # four times each error, whatever is drawn
    for draw in range(20):
        one, two = ({task: float(pairs[task][side][draw]) for task in pairs} for side in (0, 1))
        assert found[draw] == pytest.approx(delta_m(two, one, better))
    assert {float(x) * 2 % 1 for x in np.round(pairs["other"][0], 6)} == {0.0}  # means of two: 4, 4.5, 5
    assert drawn_pairs(before.statistics, {}, ["value"]) is None


def test_draws_for_several_tasks_are_those_for_one_where_all_have_labels():
    errors = [0.0, 5.0, 1.0, 9.0, 2.0]
    both = [{**sample, "other": sample["value"]} for sample in values(*errors)]
    other = replace(VALUE, name="other", target="other")
    found = judged(both, VALUE, other)
    pairs = drawn_pairs(found.statistics, found.statistics, ["value", "other"], 5, 30)
    assert np.array_equal(pairs["value"][0], drawn(found.statistics, "value", 5, 30))
    assert np.array_equal(pairs["value"][0], pairs["other"][0])


def test_many_samples_are_drawn_in_parts(monkeypatch):
    """The numbers are the same however many draws are in memory."""
    found = judged(values(*range(10)), VALUE)
    whole = drawn(found.statistics, "value", 2, 40)
    monkeypatch.setattr("mtlc.evaluation.bootstrap._VALUES", 70)
    assert np.array_equal(drawn(found.statistics, "value", 2, 40), whole)


def test_of_one_sample_nothing_is_known():
    assert interval(drawn(judged(values(2.0), VALUE).statistics, "value"), 1) is None
    assert interval(np.array([1.0, math.nan, math.nan]), 5) is None
    known = interval(np.array([1.0, 2.0, math.nan]), 5)
    assert known.draws == 2
    assert 1 < known.low < known.high < 2


def test_limits_that_ask_for_confidence():
    """Half the samples get worse by 1, half better by 0.9: 0.05 more on average, and by chance much more."""
    before = judged(values(*[5.0] * 20), VALUE)
    after = judged([*values(*[6.0] * 10), *values(*[4.1] * 10)], VALUE)
    pair = drawn_pairs(before.statistics, after.statistics, ["value"])["value"]
    for drop, least, most in ((0.06, 0.4, 0.65), (0.5, 0.96, 1.0), (0.04, 0.3, 0.55)):
        share = share_kept(Limit(drop, False), pair, False)
        assert least < share <= most
        for confidence in (None, 0.2, 0.95):
            task = replace(VALUE, max_drop=Limit(drop, False, confidence))
            expected = drop > 0.05 and (confidence is None or share >= confidence)
            assert keeps_limit(task, before, after, False) == expected
    assert keeps_limit(VALUE, before, after, False)


class Unknown(Metric):
    higher_is_better, unit, kind = True, "", "unknown"

    def update(self, output, target) -> None:
        pass

    def compute(self) -> float:
        return 1.0


class Own(Unknown):
    """The mean output, of any kind: nothing of mtlc's but the four names."""

    def __init__(self) -> None:
        self.total = self.count = 0.0

    def update(self, output, target) -> None:
        self.total, self.count = self.total + float(output.sum()), self.count + len(output)

    def compute(self) -> float:
        return self.total / self.count

    def sums(self):
        return [self.total, self.count]

    def of_sums(self, sums):
        return sums[:, 0] / sums[:, 1]


def test_metrics_of_ones_own():
    task = TaskSpec("value", "mse", f"{__name__}:Unknown")
    found = judged(values(1, 2), task)
    assert found.statistics == {}
    assert drawn(found.statistics, "value") is None
    with pytest.raises(UserError, match=r"\[tasks.value\] max_drop.confidence: metric '.*:Unknown' does not say what"):
        Criteria([replace(task, max_drop=Limit(0.1, True, 0.9))])
    own = judged(values(1, 4), replace(task, metric=f"{__name__}:Own"))
    assert set(np.round(drawn(own.statistics, "value"), 6)) == {1.0, 1.5, 2.0}


def test_what_samples_add_is_kept_where_it_is_asked_for():
    limited = replace(VALUE, max_drop=Limit(0.1, True, 0.9))
    assert evaluate(said, Criteria([VALUE]), Listed(values(1, 2))).statistics == {}
    assert set(evaluate(said, Criteria([limited]), Listed(values(1, 2))).statistics) == {"value"}
