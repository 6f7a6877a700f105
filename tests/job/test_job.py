"""Reading jobs: values, defaults, and one line for everything that is wrong."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlc.compress import pass_interface
from mtlc.compress.pass_interface import Pass, PassConfig
from mtlc.compress.passes import registry
from mtlc.compress.training.train_config import FineTuning
from mtlc.errors import UserError
from mtlc.job.job import load_job
from mtlc.job.schema import JobFile
from mtlc.quantity import Quantity
from mtlc.tasks.task import Limit, TaskSpec
from mtlc.workflows.init import STARTER

MODEL = '[model]\nfactory = "job_zoo:net"\n'
TASK = '[tasks.depth]\nloss = "l1"\nmetric = "rmse"\n'
DATA = '[data]\nfactory = "job_zoo:data"\n'
ALL = "schema = 1\n" + MODEL + TASK + DATA


class SquashConfig(PassConfig):
    round_to: int = 8
    finetune: FineTuning | None = None


class Squash(Pass[SquashConfig]):
    name = "squash"

    def run(self, program, context):
        return pass_interface.PassResult(program, {})


@pytest.fixture(autouse=True)
def _passes(monkeypatch):
    monkeypatch.setattr(registry, "pass_types", lambda: {"squash": Squash})


def job(folder: Path, text: str):
    path = folder / "job.toml"
    path.write_text(text)
    return load_job(path)


def test_values_and_defaults(tmp_path):
    loaded = job(tmp_path, ALL + '[[passes]]\nname = "squash"\n')
    (task,) = loaded.tasks
    assert (task.name, task.loss, task.metric, task.weight, task.max_drop) == ("depth", "l1", "rmse", 1.0, None)
    assert (task.output_key, task.target_key) == ("depth", "depth")
    assert loaded.seed == 0
    assert loaded.file.model.inputs == ["image"]
    assert loaded.file.budget is None
    assert loaded.file.report.devices == ["local-cpu"]
    (step,) = loaded.steps
    assert (step.name, step.config, step.where) == ("squash", SquashConfig(), "[[passes]] 1 (line 9) 'squash'")


def test_every_key_of_a_task(tmp_path):
    text = 'output = "out"\ntarget = "label"\nweight = 2\nmax_drop = "1.5%"\nignore = -1\nloss_args = {a = 1}\n'
    (task,) = job(tmp_path, "schema = 1\n" + MODEL + TASK + text + DATA).tasks
    assert (task.output_key, task.target_key, task.weight) == ("out", "label", 2.0)
    assert task.max_drop == Limit(0.015, relative=True)
    assert task.loss_args == {"a": 1}
    assert task.ignore == -1
    assert TaskSpec.from_dict(task.to_dict()) == task


def test_paths_are_relative_to_the_job(tmp_path):
    weighted = ALL.replace("[tasks", 'weights = "w/x.safetensors"\n[tasks')
    assert job(tmp_path, weighted).weights == tmp_path / "w/x.safetensors"
    absolute = tmp_path / "elsewhere.safetensors"
    assert job(tmp_path, ALL.replace("[tasks", f'weights = "{absolute}"\n[tasks')).weights == absolute


def test_the_jobs_folder_is_importable_and_data_gets_its_arguments(tmp_path):
    (tmp_path / "beside_the_job.py").write_text(
        "import torch\n"
        "def data(root, count):\n"
        "    split = [{'image': torch.zeros(3, 4, 4), 'depth': torch.zeros(1, 4, 4)}] * count\n"
        "    data.root = root\n"
        "    return split, split, split\n"
    )
    text = ALL.replace("job_zoo:data", "beside_the_job:data") + 'root = "here"\n[data.args]\ncount = 3\n'
    splits = job(tmp_path, text).load_splits()
    assert [len(splits.train), len(splits.calibration), len(splits.validation)] == [3, 3, 3]
    assert sys.modules["beside_the_job"].data.root == str(tmp_path / "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALL.replace("loss =", "los ="), "job.toml: [tasks.depth] los: unknown key; did you mean 'loss'?"),
        (ALL + "[trian]\nepochs = 1\n", "job.toml: [trian]: unknown section; did you mean 'train'?"),
        (ALL.replace("schema", "sede = 1\nschema"), "job.toml: sede: unknown key; did you mean 'seed'?"),
        (ALL.replace("schema = 1", "schema = 2"), "job.toml: schema: input should be 1, not 2"),
        (ALL.replace("schema = 1\n", ""), "job.toml: schema: this key is required"),
        ("schema = 1\n" + TASK + DATA, "job.toml: [model]: this section is required"),
        ("schema = 1\n" + MODEL + DATA, "job.toml: [tasks]: this section is required"),
        (ALL.replace('metric = "rmse"\n', ""), "job.toml: [tasks.depth] metric: this key is required"),
        (ALL.replace("job_zoo:net", "job_zoo"), "job.toml: [model] factory: write module:callable"),
        (ALL.replace('"l1"', "3"), "job.toml: [tasks.depth] loss: input should be a valid string, not 3"),
        (ALL.replace("[data]", 'max_drop = "x"\n[data]'), "job.toml: [tasks.depth]: max_drop = 'x': write a share"),
        (ALL.replace("[data]", "weight = -1\n[data]"),
         "job.toml: [tasks.depth] weight: input should be greater than 0"),
        (ALL + '[budget]\nmemory = "3M"\n', "memory = '3M': write \"40%\", \"2MB\", \"1.5MiB\" or 2000000 (bytes)"),
        (ALL + '[budget]\nmemory = "3KB"\n', "memory = '3KB': write"),
        (ALL + '[budget]\nmacs = "4%"\nparams = 3\n',
         "give exactly one of macs, params, memory and latency, not macs and params"),
        (ALL + "[budget]\n", "give exactly one of macs, params, memory and latency, not none"),
        (ALL + '[budget]\nlatency = "12"\n', 'latency = \'12\': write "40%" or "12ms"'),
        (ALL + '[budget]\nmacs = "140%"\n', "a share lies between 0% and 100%"),
        (ALL + "[budget]\nmacs = 0\n", "macs = 0: must be more than zero"),
        (ALL + "[budget]\nmacs = 0.5\n", 'macs = 0.5: must be more than one; for a share write "50%"'),
        (ALL + '[budget]\nparams = "0.25"\n', "params = '0.25': must be more than one; for a share write \"25%\""),
        (ALL + "[budget]\nmemory = 0.4\n", 'memory = 0.4: must be more than one; for a share write "40%"'),
        (ALL + "[budget]\nmacs = 1.0\n", "macs = 1: must be more than one"),
        (ALL + "[slim]\nbudgets = [0.6]\n", 'macs = 0.6: must be more than one; for a share write "60%"'),
        (ALL + '[budget]\nmacs = "4%"\ndevice = "x"\n', "device belongs to a latency budget"),
        (ALL + '[export]\nformats = ["openvino"]\n', "a bundle always holds 'onnx', from which the others are made"),
        (ALL + '[export]\nhalf = true\n', "half: is for the IR of formats = ['onnx', 'openvino']"),
        (ALL + '[export]\nformats = ["tensorrt"]\n',
         "formats: 'tensorrt' is unknown; known are onnx, openvino; for engines: mtlc build"),
        (ALL + '[[passes]]\nround_to = 8\n', "job.toml: [[passes]] 1 (line 9) name: this key is required"),
        (ALL + '[[passes]]\nname = "sqash"\n', "name = 'sqash': no such pass; did you mean 'squash'?"),
        (
            ALL + '[[passes]]\nname = "squash"\n[[passes]]\nname = "squash"\nround_too = 8\n',
            "job.toml: [[passes]] 2 (line 11) 'squash' round_too: unknown key; did you mean 'round_to'?",
        ),
        (
            ALL + '[[passes]]\nname = "squash"\nfinetune = { distil = 1 }\n',
            "job.toml: [[passes]] 1 (line 9) 'squash' [finetune] distil: unknown key; did you mean 'distill'?",
        ),
        (
            ALL + '[[passes]]\nname = "squash"\nfinetune = { epochs = "atuo" }\n',
            "job.toml: [[passes]] 1 (line 9) 'squash' [finetune] epochs: must be a finite number above 0, or \"auto\"",
        ),
        (ALL + '[train]\nepoch = 3\n', "job.toml: [train] epoch: unknown key; did you mean 'epochs'?"),
        (ALL + "[\n", "job.toml: not valid TOML: "),
        (f"seed = {'1' * 5000}\n", "job.toml: not valid TOML: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_with_its_key(tmp_path, text, message):
    with pytest.raises(UserError) as caught:
        job(tmp_path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_job(tmp_path / "none.toml")
    with pytest.raises(UserError, match=r"is a folder; name the job file, such as .*job\.toml"):
        load_job(tmp_path)
    (tmp_path / "job.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        load_job(tmp_path / "job.toml")


@pytest.mark.parametrize(
    ("kind", "text", "original", "target"),
    [
        ("macs", "40%", 1000, 400.0),
        ("macs", "25M", 1000, 25e6),
        ("macs", "25MMACs", 1000, 25e6),
        ("macs", "1.5 GMACs", 1000, 1.5e9),
        ("macs", 12000000, 1000, 12e6),
        ("params", "300k", 1000, 3e5),
        ("params", "3Mparams", 1000, 3e6),
        ("memory", "2MB", 1000, 2e6),
        ("memory", "1.5 MiB", 1000, 1.5 * 2**20),
        ("memory", "64KiB", 1000, 65536),
        ("memory", "3000", 1000, 3000),
        ("memory", 3000, 1000, 3000),
        ("memory", "25%", 1000, 250),
        ("latency", "12ms", 50, 12.0),
        ("latency", "0.2s", 50, 200.0),
        ("latency", "50%", 50, 25.0),
    ],
)
def test_budgets_in_absolute_numbers(kind, text, original, target):
    assert Quantity.parse(kind, text).absolute(original) == pytest.approx(target)


@given(st.text(max_size=12))
def test_no_text_breaks_the_budget_parser(text):
    for kind in ("macs", "params", "memory", "latency"):
        with contextlib.suppress(UserError):
            assert Quantity.parse(kind, text).value > 0


@given(st.integers(1, 99), st.integers(1, 10**12))
def test_a_share_is_that_share(share, original):
    assert Quantity.parse("macs", f"{share}%").absolute(original) == pytest.approx(share * original / 100)


def test_the_starter_job_is_valid():
    file = JobFile.model_validate(tomllib.loads(STARTER))
    assert set(file.tasks) == {"semseg", "depth", "normals"}
    assert file.model.args["tasks"] == list(file.tasks)
    assert [entry["name"] for entry in file.passes] == ["prune", "finetune"]


def test_reading_jobs_needs_no_torch():
    """`mtlc init` and the shape of a job are there with the base install."""
    code = "import sys, mtlc.job.job, mtlc.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
