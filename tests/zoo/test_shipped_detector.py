"""The shipped detector finds furniture in scenes that it was not trained on, in torch and out of its bundle's parts."""

import numpy as np
import pytest
import torch
from testkit.places import ROOT

from mtlc.box_decoding import detect, overlaps
from mtlc.detection import Detection
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.evaluation.splits import fetch
from mtlc.job.job import Job, load_job
from mtlc.program.program import Program
from mtlc.program.tensors_file import load_tensors
from mtlc.zoo import scenes
from mtlc.zoo.furniture import OBJECTS

FOLDER = ROOT / "examples" / "detection"
TASKS = ["detection", "floor", "depth", "edge", "normals"]


@pytest.fixture(scope="module")
def job() -> Job:
    return load_job(FOLDER / "prune.toml")


@pytest.fixture(scope="module")
def program(job: Job) -> Program:
    assert job.weights is not None
    made = Program(job.source.build().eval(), job.tasks, {"image": torch.zeros(2, 3, 64, 64)}, job.source)
    load_tensors(made.module, job.weights)
    return made


def test_what_it_learnt(program: Program, job: Job):
    """On 40 validation scenes; the bounds are loose, the figures of 500 scenes are in docs/results.md."""
    validation = scenes(train=2, val=40, tasks=TASKS, calibration=0.5).validation
    found = evaluate(program, Criteria(job.tasks), validation)
    assert found.metrics["detection"] > 35
    assert found.details["detection"]["map_50"] > 60
    assert found.metrics["floor"] > 90
    assert found.metrics["depth"] < 0.5
    assert found.metrics["edge"] > 85
    assert found.metrics["normals"] < 15
    assert len([name for name in found.details["detection"] if name.startswith("class_")]) == len(OBJECTS)


def test_what_it_shows_is_there(program: Program, job: Job):
    """Of the boxes that are shown most overlap an object of their class."""
    batch = fetch(scenes(train=2, val=20, tasks=TASKS, calibration=0.5).validation, range(20))
    how = Detection.parse(job.tasks[0].postprocess)
    assert how.names == OBJECTS
    with torch.inference_mode():
        rows = detect(program.outputs(batch)["detection"].numpy(), how)
    hits = []
    for found, truth in zip(rows, batch["detection"].numpy(), strict=True):
        for row in found[(found[:, 4] >= 0) & (found[:, 5] > 0.5)]:
            same = truth[truth[:, 4] == row[4]][:, :4]
            hits.append(bool((overlaps(row[:4], same) > 0.5).any()))
    assert len(hits) > 40
    assert np.mean(hits) > 0.8


def test_the_two_jobs_are_about_one_network():
    train, prune = load_job(FOLDER / "train.toml"), load_job(FOLDER / "prune.toml")
    assert train.weights == prune.weights
    assert train.file.data == prune.file.data
    for one, other in zip(train.tasks, prune.tasks, strict=True):
        assert (one.name, one.loss, one.weight) == (other.name, other.loss, other.weight)
    assert Detection.parse(train.tasks[0].postprocess).points.shape == (320, 3)
    assert (FOLDER / "weights" / "mtl_yolo.safetensors").stat().st_size < 5e6
