"""What a run says of chance: intervals by task, limits that are kept by it, and Δm, from evaluations made by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from mtlc.evaluation.evaluate import Evaluation
from mtlc.evaluation.sample_statistics import SampleStatistics
from mtlc.report.sections.summary import summary
from mtlc.report.sections.tasks import tasks_section
from mtlc.results.run import RunResults
from mtlc.results.tasks import DeltaM, LabelledSamples, TaskResult, chance_warnings
from mtlc.tasks.task import Limit, TaskSpec, delta_m
from mtlc.workflows.chances import Draws, delta_m_intervals, few_labels, gain_interval, labelled_samples, task_chances


def evaluation(**errors) -> Evaluation:
    """Metrics that are means of what each sample is given, ``task=(places in the split, errors)``."""
    metrics, statistics = {}, {}
    for task, (rows, values) in errors.items():
        known = np.array(values, float)
        metrics[task] = float(known.mean())
        statistics[task] = SampleStatistics(np.array(rows), lambda w, known=known: (w @ known) / w.sum(1))
    labelled = {task: len(rows) for task, (rows, _) in errors.items()}
    return Evaluation(metrics, metrics, {task: {} for task in metrics}, labelled, statistics)


def opened(*tasks: TaskSpec) -> SimpleNamespace:
    counts = {task.name: 30 for task in tasks}
    return SimpleNamespace(
        program=SimpleNamespace(tasks=tasks),
        job=SimpleNamespace(seed=3),
        criteria=SimpleNamespace(higher_is_better={t.name: False for t in tasks}, units={t.name: "m" for t in tasks}),
        splits=SimpleNamespace(labelled=dict.fromkeys(("train", "calibration", "validation"), counts)),
    )


ROWS = list(range(30))
BEFORE = [1.0] * 30
WORSE = [1.1] * 30  # by as much at every sample
MIXED = [2.0] * 15 + [0.1] * 15  # by 0.05 on average, and by chance much more


def task(drop: float, confidence: float | None = None) -> TaskSpec:
    return TaskSpec("depth", "l1", "rmse", max_drop=Limit(drop, False, confidence))


@pytest.mark.parametrize(
    ("after", "limit", "by_chance", "confident"),
    [
        (WORSE, task(0.2), False, True),
        (WORSE, task(0.2, 0.95), False, True),
        (WORSE, task(0.05), False, True),  # missed, and not by chance
        (MIXED, task(0.1), True, True),
        (MIXED, task(0.1, 0.95), True, False),
        (MIXED, task(0.1, 0.3), True, True),
        (MIXED, task(2.0, 0.95), False, True),
    ],
)
def test_limits_that_are_kept_by_chance(after, limit, by_chance, confident):
    draws = Draws((evaluation(depth=(ROWS, BEFORE)), evaluation(depth=(ROWS, after))), ["depth"], 3)
    found = task_chances(limit, opened(limit), draws)
    assert found.found["by_chance"] is by_chance
    assert found.confident is confident
    change = found.found["change_interval"]
    if after is WORSE:
        assert (change.low, change.high) == pytest.approx((0.1, 0.1))
        assert found.found["kept_in"] == (1.0 if limit.max_drop.value > 0.1 else 0.0)
    else:  # the standard error of the mean of these is 0.173
        assert change.low == pytest.approx(0.05 - 1.96 * 0.173, abs=0.05)
        assert change.high == pytest.approx(0.05 + 1.96 * 0.173, abs=0.05)
    assert (change.samples, change.draws) == (30, 1000)


def test_what_cannot_be_known_is_said():
    spec, before = task(0.2), evaluation(depth=([4], [1.0]))
    one = task_chances(spec, opened(spec), Draws((before, before), ["depth"], 0))
    assert one.found["no_interval"] == "one validation sample has a label"
    unknown = Evaluation({"depth": 1.0}, {"depth": 1.0}, {"depth": {}}, {"depth": 30})
    none = task_chances(spec, opened(spec), Draws((unknown, unknown), ["depth"], 0))
    assert none.found["no_interval"] == "rmse does not say what each sample adds to it"
    assert "change_interval" not in none.found
    asked = task(0.2, 0.9)
    assert not task_chances(asked, opened(asked), Draws((before, before), ["depth"], 0)).confident


def test_the_interval_of_delta_m():
    """Of the two tasks the first has labels of 20 samples, the second of 10 others: both get worse by a tenth."""
    before = evaluation(depth=(ROWS[:20], range(1, 21)), edge=(ROWS[20:], range(1, 11)))
    after = evaluation(depth=(ROWS[:20], 1.1 * np.arange(1, 21)), edge=(ROWS[20:], 1.1 * np.arange(1, 11)))
    draws, better = Draws((before, after), ["depth", "edge"], 1), {"depth": False, "edge": False}
    found = delta_m_intervals(draws, {"depth": 10.5, "edge": 5.5}, better)
    same = found["vs_original_interval"]
    assert (same.low, same.high) == pytest.approx((-10, -10))
    single = found["vs_single_task_interval"]
    told = delta_m(after.metrics, {"depth": 10.5, "edge": 5.5}, better)
    assert single.low < told < single.high
    assert single.high - single.low > 10
    assert found["original_vs_single_task_interval"].low == pytest.approx((single.low + 10) / 1.1, rel=0.01)
    assert delta_m_intervals(Draws((before, before), ["depth"], 0), None, {"depth": True}).keys() == {
        "vs_original_interval"
    }


def test_the_interval_of_a_gain():
    """The first task loses a tenth of each sample, the second gains a fifth: weighed three to one, 0.025 lost."""
    before = evaluation(depth=(ROWS, range(1, 31)), edge=(ROWS, range(1, 31)))
    after = evaluation(depth=(ROWS, 1.1 * np.arange(1, 31)), edge=(ROWS, 0.8 * np.arange(1, 31)))
    better = {"depth": False, "edge": False}
    found = gain_interval((before, after), better, {"depth": 0.75, "edge": 0.25}, 1)
    assert (found.low, found.high) == pytest.approx((-0.025, -0.025))
    assert (found.samples, found.draws) == (30, 1000)
    # A task that is worth nothing needs no interval, and does not count.
    unknown = Evaluation(after.metrics, after.metrics, {}, after.labelled, {"depth": after.statistics["depth"]})
    one = gain_interval((before, unknown), better, {"depth": 1.0, "edge": 0.0}, 1)
    assert (one.low, one.high) == pytest.approx((-0.1, -0.1))
    assert gain_interval((before, unknown), better, {"depth": 0.5, "edge": 0.5}, 1) is None
    nothing = evaluation(depth=(ROWS, np.zeros(30)))
    assert gain_interval((nothing, after), better, {"depth": 1.0}, 1) is None
    mixed = gain_interval(
        (evaluation(depth=(ROWS, BEFORE)), evaluation(depth=(ROWS, MIXED))), better, {"depth": 1.0}, 3
    )
    assert mixed.low < -0.05 < mixed.high


def test_tasks_with_labels_of_the_same_samples_share_their_draws():
    both = evaluation(depth=(ROWS, range(30)), edge=(ROWS, range(30)))
    draws = Draws((both, both), ["depth", "edge"], 1)
    alone = Draws((both, both), ["depth"], 1).of("depth")
    assert draws.of("depth") is draws.together["depth"]
    assert np.array_equal(draws.of("depth")[0], alone[0])


def test_few_labels_are_warned_of_beforehand():
    spec = task(0.2)
    found = few_labels(opened(spec), evaluation(depth=(ROWS[:4], [1.0, 1.0, 2.0, 2.0])))
    assert found == [
        "task 'depth' has 4 labelled validation samples, few for its limit of 0.2: rmse is 1.5 m, 95 % interval 1 to 2"
    ]
    assert few_labels(opened(spec), evaluation(depth=(ROWS, BEFORE))) == []
    assert few_labels(opened(TaskSpec("depth", "l1", "rmse")), evaluation(depth=([0], [1.0]))) == []
    assert labelled_samples(opened(spec), "depth") == LabelledSamples(train=30, calibration=30, validation=30)


def result(**more) -> TaskResult:
    interval = {"low": -0.29, "high": 0.39, "confidence": 0.95, "samples": 30, "draws": 1000}
    return TaskResult.model_validate(
        {
            "metric": "rmse", "unit": "m", "higher_is_better": False, "before": 1.0, "after": 1.05, "limit": "0.1",
            "within": True, "by_chance": True, "kept_in": 0.62, "change_interval": interval,
            "samples": {"train": 1200, "calibration": 30, "validation": 30}, **more,
        }
    )  # fmt: skip


def test_what_people_read_of_it():
    tasks = {"depth": result(), "edge": result(by_chance=False), "bare": result(
        change_interval=None, by_chance=None, kept_in=None, no_interval="one validation sample has a label"
    )}  # fmt: skip
    lines = chance_warnings(tasks)
    assert lines == [
        "task 'depth' keeps its limit of 0.1 by chance: rmse changes by +0.05 m, 95 % interval -0.29 to +0.39, over 30 "
        "labelled validation samples; 62 % of draws keep it",
        "task 'bare' keeps its limit of 0.1, but by how much of chance is not known: one validation sample has a label",
    ]
    found = RunResults(tasks=tasks, delta_m=DeltaM(vs_original=-5.0))
    assert summary(found)["warnings"] == [f"{line[:1].upper()}{line[1:]}." for line in lines]
    section = tasks_section(found)
    assert [row["verdict"] for row in section["rows"]] == ["kept by chance", "kept", "kept"]
    assert [row["interval"] for row in section["rows"]] == ["-0.29 to +0.39"] * 2 + ["–"]
    assert section["rows"][0]["labels"] == "1,200 / 30 / 30"
    assert section["unknown"] == ["bare: one validation sample has a label."]
