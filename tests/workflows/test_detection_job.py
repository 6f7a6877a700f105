"""A small detector goes the whole way: plan, train, prune, export, verify, infer, report, INT8. And bad jobs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mtlc.cli import main
from mtlc.runtime import Session

JOB = """
schema = 1
seed = 0

[model]
factory = "mtlc.zoo:mtl_yolo"
weights = "weights.safetensors"
args = { tasks = ["floor", "depth"], widths = [16, 16, 24, 24], head_width = 16, decoder_width = 8 }

[tasks.detection]
loss = "simota"
metric = "map_50"
postprocess = { kind = "detection", size = [64, 64], strides = [4, 8] }

[tasks.floor]
loss = "cross_entropy"
metric = "miou"

[tasks.depth]
loss = "l1"
metric = "rmse"

[data]
factory = "mtlc.zoo:scenes"

[data.args]
train = 90
val = 16
seed = 3
tasks = ["detection", "floor", "depth"]

[budget]
macs = "60%"

[[passes]]
name = "prune"
rounds = 1
initial_thres = 1000
calibration_samples = 4
sensitivity = []
finetune = { epochs = 1, lr = 1e-3, batch_size = 16 }

[train]
epochs = 14
lr = 4e-3
batch_size = 16

[report]
devices = []
"""


def invoke(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output  # progress goes to stderr


@pytest.mark.slow
def test_the_whole_way(tmp_path: Path):
    job, out = tmp_path / "job.toml", tmp_path / "run"
    job.write_text(JOB)
    trained = json.loads(invoke("train", job, "--json", "--quiet"))
    assert trained["validation"]["losses"]["detection"] < 9  # untrained it is 18
    planned = json.loads(invoke("plan", job, "--json"))
    assert "detector.heads.0.class_tower.0.conv" in json.dumps(planned)
    invoke("run", job, "--out", out, "--quiet", code=0)
    found = json.loads((out / "results.json").read_text())
    assert found["tasks"]["detection"]["kind"] == "boxes"
    assert 0 <= found["tasks"]["detection"]["before"] <= 100  # so short a training finds hardly any box
    assert {"map", "map_50", "map_75"} <= found["tasks"]["detection"]["details"]["after"].keys()
    assert found["cost"]["after"]["macs"] <= 0.61 * found["cost"]["before"]["macs"]
    assert found["passes"][0]["compared"]["tasks"]["detection"] < 1e-4
    stored = np.load(out / "pictures.npz")
    assert stored["truth_detection"].shape == stored["after_detection"].shape == stored["image"].shape
    assert (stored["truth_detection"] != stored["image"]).any()
    assert "detection" in (out / "report.html").read_text()
    invoke("verify", out / "bundle", "--against", out / "program", "--job", job)
    invoke("verify", out / "bundle", out / "reference-bundle", "--job", job, code=4)
    invoke("infer", out / "bundle", _picture(tmp_path), "--out", tmp_path / "seen")
    assert json.loads((tmp_path / "seen" / "detection.json").read_text())["size"] == [64, 64]
    quantised = tmp_path / "int8"
    few = tmp_path / "few.toml"
    few.write_text(JOB + "\n[quantize]\nsamples = 8\ncontrol = 4\n")
    invoke("quantize", out / "bundle", "--job", few, "--out", quantised, "--quiet")
    with Session(quantised) as session:
        assert session.tasks["detection"].decoder == "decode-detection.onnx"
        outputs = session.run(np.zeros((1, 3, 64, 64), np.float32))
        assert session.decode(outputs)["detection"].shape == (1, 100, 6)


def _picture(folder: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)).save(folder / "in.png")
    return folder / "in.png"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("strides = [4, 8]", "strides = [4, 16]", "expected an output (N, 272, 5 + classes) for size [64, 64]"),
        (
            "size = [64, 64]",
            "size = [64]",
            "[tasks.detection]: postprocess.size = [64]: give a height and a width in pixels",
        ),
        ("strides =", "stride =", "[tasks.detection]: postprocess.stride is unknown; did you mean 'strides'"),
        ('kind = "detection"', 'kind = "nms"', "[tasks.detection]: postprocess.kind = 'nms': must be 'detection'"),
        ("postprocess = {", "loss_args = {", "[tasks.detection] a task with boxes needs postprocess = {"),
        (
            'tasks = ["detection", "floor", "depth"]\n\n[budget]',
            "\n[budget]",
            "[tasks.detection] the calibration split has no 'detection'",
        ),
        ('metric = "map_50"', 'metric = "map50"', "unknown metric 'map50'; did you mean 'map_50'"),
    ],
)
def test_bad_jobs_are_told_in_one_line(tmp_path: Path, old: str, new: str, words: str):
    assert old in JOB
    job = tmp_path / "job.toml"
    small = (
        JOB.replace("train = 90", "train = 4")
        .replace("val = 16", "val = 2")
        .replace('weights = "weights.safetensors"', "")
    )
    job.write_text(small.replace(old, new))
    said = invoke("plan", job, code=2)
    assert words in said
    assert "Traceback" not in said
