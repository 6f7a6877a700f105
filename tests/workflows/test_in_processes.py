"""Verbs under a launcher: the first process works and writes, the others train along, one says what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from testkit import processes, toy_job

from mtlc.cli import main

TRAIN = "[train]\nepochs = 3\nbatch_size = 8\ncheckpoint_seconds = 1e-9\n"
PRUNE = (
    '[budget]\nmacs = "70%"\n[[passes]]\nname = "prune"\nround_to = 1\n'
    'finetune = { epochs = 2, lr = "auto", batch_size = 8 }\n[report]\ndevices = []\n'
)
FAULTY = toy_job.JOB.replace("toy_job:pictures", "faulty_pictures:faulty")


def together(*args: object) -> list[tuple[int, str, str]]:
    """What the command gives in each of two processes: exit code, stdout and stderr."""

    def body(_group) -> tuple[int, str, str]:
        result = CliRunner().invoke(main, [str(arg) for arg in args])
        return result.exit_code, result.stdout, result.stderr

    return processes.each(body)


def alone(*args: object) -> str:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    return result.stdout


def furthest(one: Path, other: Path) -> float:
    a, b = load_file(one), load_file(other)
    return max(float((a[k] - b[k]).abs().max() / a[k].abs().max()) for k in a if a[k].is_floating_point())


def test_train_gives_the_network_of_one_process(tmp_path):
    job = toy_job.write(tmp_path, toy_job.JOB, TRAIN)
    found = json.loads(alone("train", job, "--out", tmp_path / "one.safetensors", "--json"))
    (code, text, log), helper = together("train", job, "--out", tmp_path / "two.safetensors", "--json")
    assert (code, helper) == (0, (0, "", "")), log
    assert furthest(tmp_path / "one.safetensors", tmp_path / "two.safetensors") < 1e-3
    assert json.loads(text)["validation"]["losses"] == pytest.approx(found["validation"]["losses"], rel=1e-4)
    written = {path.name for path in tmp_path.iterdir()} - {"job.toml"}
    assert written == {f"{name}.{end}" for name in ("one", "two") for end in ("safetensors", "train.json")}


@pytest.mark.slow
def test_run_gives_the_network_of_one_process(tmp_path):
    job = toy_job.write(tmp_path, toy_job.JOB, TRAIN, PRUNE)
    found = json.loads(alone("run", job, "--out", tmp_path / "one", "--json"))
    (code, text, log), helper = together("run", job, "--out", tmp_path / "two", "--json")
    assert (code, helper) == (0, (0, "", "")), log
    assert furthest(*(tmp_path / name / "program" / "model.safetensors" for name in ("one", "two"))) < 1e-3
    assert json.loads(text)["cost"]["after"]["macs"] == found["cost"]["after"]["macs"] < 0.7 * 210_944


@pytest.mark.parametrize(("rank", "said"), [(0, ""), (1, "process 1: ")])
def test_a_process_that_fails_ends_the_others_with_one_message(tmp_path, monkeypatch, rank, said):
    job = toy_job.write(tmp_path, FAULTY, TRAIN)
    monkeypatch.setenv("FAULT", f"{rank}:raise:6")
    results = together("train", job, "--out", tmp_path / "w.safetensors", "--quiet")
    assert results[rank][0] == 2
    # The first process holds the store in which the code stands, unless the launcher does.
    assert results[1 - rank][0] in ({1, 2} if rank == 0 else {2})
    assert [out for _, out, _ in results] == ["", ""]
    assert results[1 - rank][2] == ""
    assert results[rank][2].startswith(f"error: {said}[data] sample ")
    assert results[rank][2].endswith(" of Faulty: OSError: cannot be decoded\n")
    assert not (tmp_path / "w.safetensors").exists()


def test_what_is_wrong_with_a_job_is_said_once(tmp_path):
    job = toy_job.write(tmp_path, toy_job.JOB, "[train]\nbatchsize = 8\n")
    one, other = together("train", job, "--out", tmp_path / "w.safetensors")
    # The other ends with the same code, or with 1 where the first is gone before it can learn that, and says nothing.
    assert one[0] == 2
    assert other in ((2, "", ""), (1, "", ""))
    assert "unknown key; did you mean 'batch_size'?" in one[2]


def test_numbers_of_processes_that_are_none(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    job = toy_job.write(tmp_path, toy_job.JOB, TRAIN)
    result = CliRunner().invoke(main, ["train", str(job), "--out", str(tmp_path / "w.safetensors")])
    assert result.exit_code == 2
    assert result.stderr == (
        "error: RANK and WORLD_SIZE in the environment must be whole numbers, as torchrun sets them\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_under_torchrun(tmp_path, rank):
    """It ends the others; the same command goes on from the checkpoint, to the network of an undisturbed training."""
    job = toy_job.write(tmp_path, FAULTY, TRAIN)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join(path for path in sys.path if path)

    def run(fault: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*launch, "-m", "mtlc.cli", "train", str(job), "--out", str(tmp_path / "two.safetensors")],
            env={**os.environ, "PYTHONPATH": paths, "FAULT": fault}, capture_output=True, text=True, timeout=200,
        )  # fmt: skip

    killed = run(f"{rank}:kill:8")
    assert killed.returncode != 0
    lines = [line for line in killed.stderr.splitlines() if line.startswith("error: ")]
    said = "error: a process that trains along has ended; the same command goes on from the last checkpoint"
    assert lines == ([] if rank == 0 else [said])  # of the first process the launcher says that it was killed
    assert (tmp_path / "two.safetensors.training" / "state" / "state.json").exists()
    again = run("")
    assert again.returncode == 0, again.stderr
    assert "training goes on from step" in again.stderr
    alone("train", job, "--out", tmp_path / "one.safetensors")
    assert furthest(tmp_path / "one.safetensors", tmp_path / "two.safetensors") < 1e-3
    assert not torch.distributed.is_initialized()
