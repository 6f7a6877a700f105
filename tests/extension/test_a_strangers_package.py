"""Builds the package of docs/extending.md as a stranger would, installs it and runs a job with it.

The package is installed into an environment of its own, which sees the packages of this one; this one stays as it is.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from testkit import toy_job
from testkit.places import DOCS, environment

from mtlc.runtime import write_png

PAGE = (DOCS / "extending.md").read_text()
SEMSEG = '[tasks.semseg]\nloss = "cross_entropy"\nmetric = "miou"\n'


def files_of_the_page() -> dict[str, str]:
    """The files that the page shows: a name in a line of its own, and the block below it."""
    return dict(re.findall(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```", PAGE, re.M | re.S))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment in which the package of the page is installed, editable."""
    folder = tmp_path_factory.mktemp("stranger")
    for name, text in files_of_the_page().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    # addsitedir, not a path: what is installed editable here is found by .pth files, too
    (site / "ours.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    python = folder / "venv" / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "--python", python, *install, "--editable", folder / "acme-mtlc"]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return python


# One process for all verbs, since it is importing torch that takes the time: [arguments, file for what is printed], …
VERBS = """
import contextlib, json, sys
from mtlc.cli import main
for arguments, printed in json.loads(sys.argv[1]):
    with open(printed, "w") as file, contextlib.redirect_stdout(file):
        main(arguments, standalone_mode=False)
"""


@pytest.fixture(scope="module")
def folder(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the verbs left: plan.json, out/, and by backend a folder of pictures; bench.json.

    The job is the toy job, with the sections of the page for what it says of depth, its passes and its report.
    """
    folder = tmp_path_factory.mktemp("job")
    without = re.sub(r"\[tasks\.\w+\]\n(?:\w+ = .*\n)*", "", toy_job.JOB)
    job = toy_job.write(folder, without, SEMSEG, files_of_the_page()["job.toml"])
    write_png(folder / "image.png", np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))
    bundle, image = folder / "out" / "bundle", folder / "image.png"
    verbs = [
        (["plan", job, "--json", "--quiet"], "plan.json"),
        (["run", job, "--out", folder / "out", "--quiet"], "run.txt"),
        *(
            (["infer", bundle, image, "--backend", backend, "--raw", "--out", folder / backend], f"{backend}.txt")
            for backend in ("onnx-reference", "onnxruntime")
        ),
        (["bench", bundle, "--backend", "onnx-reference", "--rounds", "2", "--json"], "bench.json"),
    ]
    asked = json.dumps([([str(word) for word in arguments], str(folder / printed)) for arguments, printed in verbs])
    command = [python, "-c", VERBS, asked]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(OMP_NUM_THREADS="1"))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> dict:
    return json.loads((folder / "out" / "results.json").read_text())


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "out" / "report.html").read_text()


def test_the_page_shows_an_entry_point_of_each_group():
    groups = re.findall(
        r'^\[project\.entry-points\."(mtlc\.\w+)"\]', files_of_the_page()["acme-mtlc/pyproject.toml"], re.M
    )
    assert groups == re.findall(r"^\| \[.*?\| `(mtlc\.\w+)` \|", PAGE, re.M)
    assert len(groups) == 7


def test_the_plan_asks_the_pass(folder: Path):
    plan = json.loads((folder / "plan.json").read_text())
    where = plan["passes"][0].pop("where")
    assert where.endswith("'snap'")
    assert plan["passes"] == [{"name": "snap", "config": {"bits": 6}, "plan": {"tensors": 4}}]
    depth = next(task for task in plan["tasks"] if task["name"] == "depth")
    assert (depth["loss"], depth["metric"], depth["unit"]) == ("huber", "within", "%")


def test_the_pass_ran_and_is_in_the_results(results: dict):
    (step,) = results["passes"]
    assert (step["name"], step["config"], step["report"]["tensors"]) == ("snap", {"bits": 6}, 4)
    assert 0 < step["report"]["moved"] < 1 / 2**6


def test_the_metric_and_the_loss_judge_the_task(results: dict):
    depth = results["tasks"]["depth"]
    assert (depth["metric"], depth["unit"], depth["higher_is_better"]) == ("within", "%", True)
    assert all(0 <= depth[side] <= 100 for side in ("before", "after"))
    assert depth["loss"]["before"] > 0


def test_the_device_is_priced_in_the_report(results: dict, page: str):
    (device,) = results["devices"]
    assert device["kind"] == "modelled"
    assert 0 < device["after_ms"] <= device["before_ms"]
    assert "Acme Vision Board" in page


def test_the_section_is_in_the_report(page: str):
    assert "Snapped weights" in page
    assert "4 tensors to 6 bits" in page


def test_the_tracker_was_told(folder: Path, results: dict):
    lines = (folder / "out" / "told.txt").read_text().splitlines()
    assert (lines[0], lines[-1]) == ("job run, seed 0", "finished")
    assert f"0 after/macs {results['cost']['after']['macs']:g}" in lines
    assert f"1 passes/macs {results['passes'][0]['cost']['macs']:g}" in lines
    assert [line for line in lines if line.startswith("made ")] == [
        "made results.json",
        "made report.html",
        "made bundle",
    ]


def test_the_backend_runs_the_bundle(folder: Path):
    """And gives what onnxruntime does."""
    ours, theirs = (np.load(folder / name / "depth.npy") for name in ("onnxruntime", "onnx-reference"))
    assert np.allclose(ours, theirs, atol=1e-5)
    (row,) = json.loads((folder / "bench.json").read_text())["rows"]
    assert row["backend"] == "onnx-reference"
    assert row["median_ms"] > 0
