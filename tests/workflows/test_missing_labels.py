"""Two data sets with labels of one task each: trained together, planned, pruned and reported by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from testkit import two_data_sets
from testkit.two_data_sets import JOB, PRUNE, TRAIN

from mtlc.cli import main
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.job.job import load_job
from mtlc.program.program import Program

WEIGHTS = JOB.replace('factory = "testkit.toy_job:net"', 'factory = "testkit.toy_job:net"\nweights = "w.safetensors"')
LIMITS = WEIGHTS.replace('metric = "rmse"', 'metric = "rmse"\nmax_drop = {drop = "60%", confidence = 0.9}').replace(
    'metric = "miou"', 'metric = "miou"\nmax_drop = "70%"'
)
QUICK = TRAIN.replace("epochs = 8", "epochs = 1")
FINETUNE = '[[passes]]\nname = "finetune"\nepochs = 1\nlr = 1e-3\nbatch_size = 8\n'
NO_TRAIN, NO_VALIDATION = (
    JOB.replace("two_data_sets:pictures", f"two_data_sets:without_{split}_labels") for split in ("train", "validation")
)


def mtlc(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The trained and pruned network of a job."""
    folder = tmp_path_factory.mktemp("two")
    job = two_data_sets.write(folder, LIMITS, TRAIN, PRUNE)
    assert mtlc("train", job).exit_code == 0
    result = mtlc("run", job, "--out", folder / "out")
    assert result.exit_code == 0, result.output
    (folder / "log").write_text(result.output)
    return folder


def test_training_on_both_counts_the_labels_of_each(folder):
    found = json.loads((folder / "w.train.json").read_text())
    assert set(found["training"]["losses"]) == {"depth", "semseg"}
    first, last = (found["training"]["curve"]["losses"][place]["losses"] for place in (0, -1))
    assert all(last[task] < first[task] for task in last)


def test_a_plan_says_how_many_samples_have_labels(folder):
    result = mtlc("plan", folder / "job.toml", "--quiet")
    words = "labels of 24 of 40 train, 8 of 16 calibration, 12 of 24 validation samples"
    assert f"depth: l1, rmse, may lose 60% at 90% confidence, {words}\n" in result.stdout
    found = json.loads(mtlc("plan", folder / "job.toml", "--json", "--quiet").stdout)
    assert [task["samples"]["train"] for task in found["tasks"]] == [24, 16]
    assert found["tasks"][0]["max_drop"] == {"value": 0.6, "relative": True, "confidence": 0.9}


def test_the_results_of_a_run(folder):
    """Each task's numbers are those of its own samples, worked out anew with the network that was written."""
    found = json.loads((folder / "out" / "results.json").read_text())
    job = load_job(folder / "job.toml")
    program = Program.load(folder / "out" / "program", job.source)
    for task, part in (("depth", 3), ("semseg", 4)):
        data = two_data_sets.OneTask(12, part + 2, task)
        spec = [one for one in job.tasks if one.name == task]
        alone = evaluate(lambda batch, task=task: program.outputs(batch, [task]), Criteria(spec), data)
        told = found["tasks"][task]
        assert told["after"] == pytest.approx(alone.metrics[task], rel=1e-6)
        assert told["loss"]["after"] == pytest.approx(alone.losses[task], rel=1e-6)
        assert told["samples"] == {"train": {"depth": 24, "semseg": 16}[task], "calibration": 8, "validation": 12}
        interval = told["change_interval"]
        assert interval["low"] <= told["after"] - told["before"] <= interval["high"]
        assert (interval["confidence"], interval["samples"], interval["draws"]) == (0.95, 12, 1000)
        assert told["kept_in"] > 0.9
        assert told["within"] is True
    delta = found["delta_m"]
    assert delta["vs_original_interval"]["low"] <= delta["vs_original"] <= delta["vs_original_interval"]["high"]
    assert found["cost"]["after"]["macs"] <= 0.7 * found["cost"]["before"]["macs"]
    assert found["missed"] == []


def test_the_log_and_the_report_say_so(folder):
    log, report = (folder / "log").read_text(), (folder / "out" / "report.html").read_text()
    assert "[data] labels of task 'semseg': 16 of 40 train, 8 of 16 calibration, 12 of 24 validation samples" in log
    assert "warning: task 'depth' has 12 labelled validation samples, few for its limit of 60% at 90%" in log
    assert "<td>24 / 8 / 12</td>" in report
    assert "95 % interval, in its unit" in report
    found = json.loads((folder / "out" / "results.json").read_text())["tasks"]["depth"]["change_interval"]
    assert f"{found['low']:+.3g} to {found['high']:+.3g}" in log
    assert f"{found['low']:+.3g} to {found['high']:+.3g}" in report


def test_the_truth_of_a_sample_without_a_label_is_grey(folder):
    """Both samples that are shown are of the first data set."""
    with np.load(folder / "out" / "pictures.npz") as pictures:
        assert set(np.unique(pictures["truth_semseg"])) == {128}
        assert len(np.unique(pictures["truth_depth"])) > 10
        assert len(np.unique(pictures["after_semseg"])) > 2


def test_images_without_labels_do_not_change_what_is_measured(folder):
    """A plan of the same network on data with 16 more training images: the metrics are those without them."""
    more = LIMITS + "[data.args]\nbare = 16\n"
    job = two_data_sets.write(folder / "more", more.replace("w.safetensors", "../w.safetensors"), PRUNE)
    one, other = (
        json.loads(mtlc("plan", path, "--json", "--quiet").stdout)["tasks"] for path in (folder / "job.toml", job)
    )
    assert one == other


def test_no_train_label_needs_a_teacher(tmp_path):
    result = mtlc("plan", two_data_sets.write(tmp_path, NO_TRAIN, FINETUNE))
    assert result.exit_code == 0
    assert (
        "warning: [data] train: no sample has a label of task 'semseg': it learns from the outputs of" in result.output
    )
    job = two_data_sets.write(tmp_path, NO_TRAIN, FINETUNE + "distill = 0.0\n")
    result = mtlc("plan", job, "--quiet")
    assert result.exit_code == 2
    assert result.stderr == "error: [tasks.semseg] the train split has no 'semseg'; its keys: depth, image\n"


@pytest.mark.parametrize("verb", ["plan", "run", "train"])
def test_a_split_without_a_label_is_refused_in_one_line(verb, tmp_path):
    text = NO_VALIDATION.replace(
        'factory = "testkit.toy_job:net"', 'factory = "testkit.toy_job:net"\nweights = "w.safetensors"'
    )
    job = two_data_sets.write(tmp_path, text if verb == "train" else NO_VALIDATION, QUICK, FINETUNE)
    out = ("--out", tmp_path / "w.safetensors") if verb == "train" else ()
    result = mtlc(verb, job, "--quiet", *out)
    assert result.exit_code == 2
    assert result.stderr == "error: [tasks.semseg] the validation split has no 'semseg'; its keys: depth, image\n"
    assert not (tmp_path / "w.safetensors").exists()


def test_a_limit_that_cannot_be_read_names_the_key(tmp_path):
    job = two_data_sets.write(tmp_path, LIMITS.replace("confidence = 0.9", "confidnce = 0.9"))
    result = mtlc("plan", job, "--quiet")
    assert result.exit_code == 2
    assert "max_drop has no key 'confidnce'; did you mean 'confidence'?" in result.stderr
    assert len(result.stderr.splitlines()) == 1
