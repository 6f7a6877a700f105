"""Whole jobs on a device that refuses what a GPU refuses: the CPU's networks, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from testkit import pretended_device, toy_job

from mtlc.cli import main
from mtlc.job.job import load_job
from mtlc.workflows.run import run_job
from mtlc.workflows.slim import slim_job
from mtlc.workflows.train import train_job

FINETUNE = "finetune = { epochs = 1, batch_size = 8, lr = 1e-3 }\n"
PRUNE = (
    toy_job.JOB.replace(':net"\n', ':net"\nargs = { width = 16 }\n')
    + f'[budget]\nmacs = "70%"\n[[passes]]\nname = "prune"\nround_to = 4\n{FINETUNE}'
    + '[[passes]]\nname = "qat"\nepochs = 1\nbatch_size = 8\ncalibration_samples = 8\n'
    + '[[passes]]\nname = "calibrate"\n'
)


@pytest.fixture
def device() -> Iterator[str]:
    with pretended_device.pretended() as device:
        yield str(device)


def weights(folder):
    return load_file(folder / "program" / "model.safetensors")


def same(one, other):
    return len(one) > 0 and one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def ran_there():
    found = len(pretended_device.operators)
    pretended_device.operators.clear()
    return found


def test_run(tmp_path, device):
    job, lines = load_job(toy_job.write(tmp_path / "job", PRUNE)), list[str]()
    cpu = run_job(job.on("cpu"), tmp_path / "cpu")
    ran_there()
    there = run_job(job.on(device), tmp_path / "there", log=lines.append)
    assert lines[0] == "torch computes on pretended:0 (pretended)"
    assert ran_there() > 5000
    assert {name: task.after for name, task in there.tasks.items()} == {n: t.after for n, t in cpu.tasks.items()}
    assert [one.cost for one in there.passes] == [one.cost for one in cpu.passes]
    assert same(weights(tmp_path / "there"), weights(tmp_path / "cpu"))


def test_train(tmp_path, device):
    job = load_job(toy_job.write(tmp_path / "job", "", toy_job.JOB, "[train]\nepochs = 1\nbatch_size = 8\n"))
    for name in ("cpu", device):
        train_job(job.on(name), tmp_path / f"{name.partition(':')[0]}.safetensors")
    assert ran_there() > 500
    assert same(load_file(tmp_path / "cpu.safetensors"), load_file(tmp_path / "pretended.safetensors"))


def test_slim(tmp_path, device):
    section = (
        '[[passes]]\nname = "slim"\nround_to = 4\ntrain = { epochs = 1, batch_size = 8 }\n[slim]\nbudgets = ["60%"]\n'
    )
    job = load_job(toy_job.write(tmp_path / "job", PRUNE.partition("[budget]")[0], section))
    cpu = slim_job(job.on("cpu"), tmp_path / "cpu")
    ran_there()
    there = slim_job(job.on(device), tmp_path / "there")
    assert ran_there() > 2000
    assert there.points == cpu.points
    assert same(weights(tmp_path / "there"), weights(tmp_path / "cpu"))


@pytest.mark.parametrize("verb", ["run", "train", "slim", "plan"])
def test_a_device_that_is_not_there_is_one_line(tmp_path, verb):
    job = toy_job.write(tmp_path / "job", PRUNE)
    result = CliRunner().invoke(main, [verb, str(job), "--device", "cuda:7", "--quiet"])
    if torch.cuda.is_available():
        pytest.skip("it may be there")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: device = 'cuda:7' is not there: this machine has no cuda device that torch can use; leave it out, or "
        "say cpu\n"
    )
    assert [path.name for path in tmp_path.rglob("*")] == ["job", "job.toml"]


def test_a_job_that_names_one(tmp_path):
    job = toy_job.write(tmp_path / "job", 'device = "tpu"\n' + toy_job.JOB)
    result = CliRunner().invoke(main, ["plan", str(job), "--quiet"])
    assert (result.exit_code, result.stderr) == (2, "error: device = 'tpu': give auto, cpu, cuda, cuda:1 or mps\n")
