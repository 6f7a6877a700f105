"""`mtlc verify` of two bundles, two backends and two precisions: differences, metrics and limits, by task."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from testkit import toy_job

from mtlc.cli import main
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.job.job import load_job
from mtlc.runtime import Session
from mtlc.workflows.output_differences import Differences

LIMITED = toy_job.JOB.replace('metric = "rmse"\n', 'metric = "rmse"\nmax_drop = "{limit}"\n')
QUANTIZE = '[quantize]\ntarget = "x86"\nsamples = 4\n[report]\ndevices = []\npictures = 0\n'


def mtlc(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result


def found_by(*args: object, code: int = 0) -> dict:
    return json.loads(mtlc("verify", *args, "--json", code=code).stdout)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = toy_job.write(tmp_path_factory.mktemp("verified"), LIMITED.format(limit="100%"), QUANTIZE)
    mtlc("run", path, "--quiet")
    return path


@pytest.fixture(scope="module")
def bundle(job: Path) -> Path:
    return job.parent / "job-out" / "bundle"


@pytest.fixture(scope="module")
def int8(job: Path) -> Path:
    return job.parent / "job-out" / "bundle-int8"


def test_differences_by_hand():
    differences = Differences()
    differences.add(np.array([[1.0, 2.0], [3.0, -4.0]]), np.array([[1.0, 2.5], [3.0, -4.0]]))
    differences.add(np.array([[0.0, 8.0]]), np.array([[2.0, 8.0]]))
    # by sample 0.5, 0 and 2; the largest reference is 8; the sums are 2.5 and 1 + 2.5 + 7 + 10
    expected = {"max_abs": 2.0, "max_rel": 0.25, "mean_rel": 2.5 / 20.5, "why": None}
    assert differences.summary() == pytest.approx(expected)
    assert differences.over(0.06) == [0, 2]
    assert differences.summary([2]) == pytest.approx(
        {"max_abs": 0.5, "max_rel": 0.0625, "mean_rel": 0.5 / 10.5, "why": None}
    )


@pytest.mark.parametrize(
    ("one", "two", "why"),
    [
        (np.ones((1, 2)), np.ones((1, 3)), "outputs float64 [1, 2] and float64 [1, 3]"),
        (np.array([np.nan]), np.array([1.0]), "an output is not finite"),
        (np.array([np.inf]), np.array([np.inf]), "an output is not finite"),
        (np.array([1.0]), np.array([0.0]), "the reference is zero everywhere"),
    ],
)
def test_outputs_that_do_not_compare(one, two, why):
    differences = Differences()
    differences.add(one, two)
    found = differences.summary()
    assert (found["max_rel"], found["why"]) == (None, why)


def test_two_backends_on_real_samples(job: Path, bundle: Path):
    pytest.importorskip("openvino")
    found = found_by(bundle, "--backend", "openvino", "--job", job, "--split", "validation")
    assert (found["first"]["backend"], found["reference"]["backend"]) == ("openvino", "onnxruntime")
    assert (found["samples"], found["tolerance"]) == (8, 1e-4)
    with Session(bundle) as session:
        run = lambda batch: {n: torch.from_numpy(a) for n, a in session.run(batch["image"].numpy()).items()}  # noqa: E731
        loaded = load_job(job)
        metrics = evaluate(run, Criteria(loaded.tasks), loaded.load_splits().validation).metrics
    for task, row in found["tasks"].items():
        assert row["reference"] == pytest.approx(metrics[task])
        assert row["value"] == pytest.approx(metrics[task], rel=1e-4)
        assert row["difference"] == pytest.approx(row["value"] - row["reference"])
        assert row["change_interval"]["low"] <= row["difference"] <= row["change_interval"]["high"]
        assert row["change_interval"]["samples"] == 8
        assert 0 <= row["mean_rel"] <= row["max_rel"] < 1e-4 or row["max_abs"] == 0
        assert row["near_ties"] == 0
    assert (found["tasks"]["depth"]["within"], found["tasks"]["semseg"]["within"]) == (True, None)
    # A tolerance below rounding is missed: the check can fail.
    if found["tasks"]["depth"]["max_rel"] > 0:
        result = mtlc("verify", bundle, "--backend", "openvino", "--job", job, "--tolerance", "1e-12", code=4)
        assert "task 'depth': 8 of 8 samples differ" in result.stderr
        assert "failed: task 'depth'" in result.stdout


def test_two_precisions_are_judged_by_the_limits(job: Path, bundle: Path, int8: Path, tmp_path: Path):
    found = found_by(int8, bundle, "--job", job, "--samples", "5")
    assert (found["first"]["precision"], found["reference"]["precision"]) == ("int8", "fp32")
    assert (found["samples"], found["tolerance"], found["failed"], found["missed"]) == (5, None, [], [])
    assert found["tasks"]["depth"]["max_rel"] > 1e-4
    assert found["tasks"]["depth"]["difference"] != 0
    interval = found["tasks"]["depth"]["change_interval"]
    assert interval["low"] < interval["high"]
    assert (interval["samples"], interval["draws"]) == (5, 1000)
    assert (found["tasks"]["depth"]["kept_in"], found["tasks"]["depth"]["by_chance"]) == (1.0, False)
    assert "kept_in" not in found["tasks"]["semseg"]
    assert found["by_chance"] == []
    shown = mtlc("verify", int8, bundle, "--job", job).stdout
    assert "value - reference, 95 %" in shown
    assert "kept" in shown
    # Whichever of the two is worse misses a limit of nothing.
    strict = toy_job.write(tmp_path, LIMITED.format(limit="0%"))
    better, worse = (bundle, int8) if found["tasks"]["depth"]["difference"] > 0 else (int8, bundle)
    missed = mtlc("verify", worse, better, "--job", strict, "--samples", "5", code=3)
    assert "task 'depth': rmse is" in missed.stderr
    assert "max_drop 0% is not kept" in missed.stderr
    assert "MISSED" in missed.stdout
    mtlc("verify", better, worse, "--job", strict, "--samples", "5")
    # A tolerance that is asked for holds for them too.
    assert "allowed 1.0e-06" in mtlc("verify", int8, bundle, "--job", job, "--tolerance", "1e-6", code=4).stderr


def test_a_limit_may_ask_for_confidence(job: Path, bundle: Path, int8: Path, tmp_path: Path):
    """The limit lies between the difference and the end of its interval: kept by the metric, and by chance."""
    row = found_by(int8, bundle, "--job", job)["tasks"]["depth"]
    first, second = (int8, bundle) if row["difference"] > 0 else (bundle, int8)
    worse = found_by(first, second, "--job", job)["tasks"]["depth"]
    drop = (worse["difference"] + worse["change_interval"]["high"]) / 2
    for name, limit, code in (
        ("by_metric", f"{drop:.9f}", 0),
        ("surely", f"{{ drop = {drop:.9f}, confidence = 0.99 }}", 3),
    ):
        (tmp_path / name).mkdir()
        asked = toy_job.write(tmp_path / name, LIMITED.replace('"{limit}"', limit))
        result = mtlc("verify", first, second, "--job", asked, code=code)
        found = found_by(first, second, "--job", asked, code=code)
        task = found["tasks"]["depth"]
        assert (task["within"], task["by_chance"]) == (code == 0, True)
        assert 0.5 < task["kept_in"] < 0.99
        if code:
            assert "is kept, but only in" in result.stderr
            assert "MISSED" in result.stdout
        else:
            assert "kept by chance" in result.stdout
            assert f"by chance: {found['by_chance'][0]}" in result.stdout
            assert "over 8 labelled calibration samples" in found["by_chance"][0]


def test_another_network_of_the_same_precision_is_4(job: Path, bundle: Path, tmp_path: Path):
    other = toy_job.write(tmp_path, toy_job.JOB.replace('net"', 'net"\nargs = { width = 6 }'), QUANTIZE)
    mtlc("run", other, "--quiet")
    result = mtlc("verify", tmp_path / "job-out" / "bundle", bundle, code=4)
    assert "task 'depth': 32 of 32 samples differ" in result.stderr
    assert "note: inputs are random, without --job" in result.stdout


def test_without_a_job_inputs_are_random_and_nothing_is_measured(bundle: Path, int8: Path):
    found = found_by(int8, bundle, "--samples", "11")
    assert (found["inputs"], found["samples"]) == ("random", 11)
    assert any("no metric is measured" in note for note in found["notes"])
    assert all("metric" not in row and row["max_rel"] > 0 for row in found["tasks"].values())


def test_what_does_not_compare_is_one_line(job: Path, bundle: Path, int8: Path):
    for arguments in ((bundle, bundle), (bundle, "--backend", "onnxruntime"), (bundle, "--samples", "3")):
        assert "would be compared with itself" in mtlc("verify", *arguments, code=2).stderr
    assert "no backend 'tpu'" in mtlc("verify", bundle, "--backend", "tpu", code=5).stderr
    assert "--split needs --job" in mtlc("verify", int8, bundle, "--split", "validation", code=2).stderr
    assert (
        "--against compares with a checkpoint" in mtlc("verify", int8, bundle, "--against", job.parent, code=2).stderr
    )
    assert "--job and --tolerance need something to compare with" in mtlc("verify", bundle, "--job", job, code=2).stderr
