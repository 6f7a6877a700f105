"""The curve costs what it may, changes nothing, and tells whether more training would pay."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from testkit import tiny_networks
from testkit.tiny_networks import REGRESSION, Samples, same_state

from mtlc.compress.training import learning_curve
from mtlc.compress.training.learning_curve import Measurements, generators_kept, more_epochs
from mtlc.compress.training.train_config import TrainConfig
from mtlc.compress.training.trainer import train
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits
from mtlc.results.train import TrainingEffort, trainings_of
from mtlc.tasks.task import TaskSpec

FAST = {"batch_size": 4, "augment": False, "precision": "float32"}


@pytest.mark.parametrize(
    ("steps", "batch", "calibration", "points", "samples"),
    [
        (2000, 32, 500, 8, 500),  # 0.15 · 64,000 = 9,600 samples, 1,200 at each of 8 points
        (200, 32, 500, 8, 120),  # 960 in all
        (60, 32, 500, 4, 72),  # 288: 36 at 8 points are under 64, so there are 4
        (20, 32, 500, 4, 24),  # 96: few at 4, but not under 16
        (6, 4, 500, 0, 0),  # 3.6
        (6, 4, 10, 0, 0),
    ],
)
def test_measuring_takes_a_twentieth_of_the_training(steps, batch, calibration, points, samples):
    found = Measurements(steps, batch, calibration)
    assert (found.points, found.samples) == (points, samples)
    assert points * samples <= 0.05 * 3 * steps * batch
    measured = [step for step in range(1, steps + 1) if found.of_metrics(step)]
    assert len(measured) == points
    assert measured[-1:] == [steps][: len(measured)]
    assert sum(found.of_losses(step) for step in range(1, steps + 1)) == min(50, steps)


def curve(**tasks: list[float]) -> dict:
    count = len(next(iter(tasks.values())))
    return {
        "losses": [],
        "metrics": [{"step": 10 * (i + 1), "metrics": {t: v[i] for t, v in tasks.items()}} for i in range(count)],
    }


LOWER, HIGHER = TaskSpec("depth", "l1", "rmse"), TaskSpec("semseg", "cross_entropy", "miou")


def test_a_power_law_is_followed():
    """0.8 - 0.4 / √t at t = 1, 2, 4 goes on to 0.6 at 4 and 0.6586 at 8: a gain of 9.763 % of 0.6."""
    values = [0.8 - 0.4 / t**0.5 for t in (1, 2, 3, 4)]
    found = more_epochs(curve(semseg=values), Criteria([HIGHER]), 5)
    assert found is not None
    assert found["gain"]["semseg"] == pytest.approx(100 * (0.4 / 2 - 0.4 / 8**0.5) / 0.6, abs=1e-3)
    assert found["worth"]
    assert found["line"] == "more epochs would pay: twice as many (10) promise semseg 9.8 % of its metric"


def test_a_metric_that_stands_promises_nothing():
    found = more_epochs(curve(depth=[1.0, 0.5, 0.5, 0.5]), Criteria([LOWER]), 4)
    assert found == {
        "kind": "modelled", "worth": False, "gain": {"depth": 0.0},
        "line": "more epochs would hardly pay: twice as many (8) promise no task 0.5 % of its metric",
    }  # fmt: skip


def test_of_eight_points_the_second_fourth_and_last_count():
    four = more_epochs(curve(depth=[4.0, 3.0, 9.0, 2.5]), Criteria([LOWER]), 4)
    eight = more_epochs(curve(depth=[9.0, 4.0, 9.0, 3.0, 9.0, 9.0, 9.0, 2.5]), Criteria([LOWER]), 4)
    assert four == eight
    assert four is not None
    assert four["gain"]["depth"] == 10.0  # 0.5 · 0.5 / 1.0 of 2.5
    assert more_epochs(curve(depth=[3.0, 2.0]), Criteria([LOWER]), 4) is None


def test_what_is_drawn_in_between_is_put_back():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), float(torch.rand(()))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with generators_kept():
        random.random(), np.random.rand(), torch.rand(())
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected


def test_a_training_that_is_measured_is_the_same(monkeypatch):
    """40 steps of 4 samples: 24 forwards may go to measuring, so 6 calibration samples at each of 4 points."""
    teacher = tiny_networks.chain_program(REGRESSION)
    tensors = tiny_networks.taught(teacher, 16, 0).tensors
    reports, programs = [], []
    for points in ((8, 4), (8, 99)):
        monkeypatch.setattr(learning_curve, "POINTS", points)
        program, data = tiny_networks.program("chain", 8, REGRESSION, seed=7), Samples(tensors)
        splits = Splits(data, Samples({key: value[:6] for key, value in tensors.items()}), data, identity="test")
        reports.append(train(program, splits, Criteria(REGRESSION), TrainConfig(epochs=10, lr=0.01, **FAST)))
        programs.append(program)
    measured, unmeasured = reports
    assert [point["step"] for point in measured["curve"]["metrics"]] == [10, 20, 30, 40]
    assert (measured["curve"]["samples"], unmeasured["curve"]["metrics"]) == (6, [])
    assert len(measured["curve"]["losses"]) == 40
    assert same_state(programs[0].module, programs[1].module)
    assert set(measured["more_epochs"]["gain"]) == {"depth", "semseg"}
    assert "more_epochs" not in unmeasured
    assert TrainingEffort.model_validate(measured).curve is not None


def test_trainings_are_found_in_reports():
    one = {"steps": 1, "samples": 4, "seconds": 0.1, "losses": {}}
    one["curve"] = {"steps_per_epoch": 1, "samples": 0, "losses": [], "metrics": []}
    assert list(trainings_of(one)) == [""]
    assert list(trainings_of({"training": one})) == [""]
    assert list(trainings_of({"rounds": [{"training": one}, {"training": None}, {"training": one}]})) == [
        "round 1", "round 3",
    ]  # fmt: skip
    assert trainings_of({"rounds": 3, "training": None}) == {}
