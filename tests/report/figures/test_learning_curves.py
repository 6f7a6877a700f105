"""The curve of a training is drawn in shares of its end, task by task."""

from __future__ import annotations

import math

from mtlc.report.figures.learning_curves import _of_the_end, learning_curve
from mtlc.report.sections.passes import passes_section
from mtlc.results.run import RunResults
from mtlc.results.train import LearningCurve

CURVE = {
    "steps_per_epoch": 10, "samples": 6,
    "losses": [{"step": s, "losses": {"depth": 4.0 / s, "semseg": 1.0}} for s in (10, 20, 40)],
    "metrics": [{"step": s, "metrics": {"depth": 20.0 / s, "semseg": None}} for s in (10, 20, 30, 40)],
}  # fmt: skip
MORE = {"kind": "modelled", "worth": False, "gain": {"depth": 0.1}, "line": "more epochs would hardly pay"}
TRAINING = {
    "steps": 40, "samples": 160, "seconds": 1.5, "losses": {"depth": 0.1}, "curve": CURVE, "more_epochs": MORE,
    "recipe": {"epochs": 4.0, "epochs_from": "given", "lr": 2e-3, "lr_from": "that of [train]"},
}  # fmt: skip


def test_what_was_not_measured_is_left_out():
    points = [(1.0, {"a": 4.0}), (2.0, {"a": None}), (3.0, {"a": math.nan}), (4.0, {"a": 2.0})]
    assert _of_the_end(points, "a") == ([1.0, 4.0], [200.0, 100.0])
    assert _of_the_end([(1.0, {"a": 0.0})], "a") == ([1.0], [0.0])
    assert _of_the_end([], "a") == ([], [])


def test_the_figure_names_the_tasks():
    drawn = learning_curve(LearningCurve.model_validate(CURVE))
    assert drawn.startswith("<svg")
    assert all(word in drawn for word in ("depth", "semseg", "running loss", "metric, calibration split"))
    assert "metric, calibration split" not in learning_curve(LearningCurve.model_validate(CURVE | {"metrics": []}))


def test_the_section_shows_every_training():
    """The numbers that are drawn are not printed as well."""
    passes = [
        {"name": "finetune", "report": TRAINING},
        {"name": "prune", "report": {"rounds": [{"training": TRAINING}, {"training": TRAINING}]}},
        {"name": "calibrate", "report": {"layers": 3}},
    ]
    first, second, third = passes_section(RunResults.read({"passes": passes}, "made"))
    assert [one["name"] for one in second["trainings"]] == ["round 1", "round 2"]
    assert third["trainings"] == []
    assert first["trainings"][0]["recipe"] == "4 epochs (given), learning rate 0.002 (that of [train])"
    assert first["trainings"][0]["more"] == "more epochs would hardly pay"
    assert "steps_per_epoch" not in first["report"]
    assert '"steps": 40' in first["report"]
