"""``--set``, ``--log-level`` and what is kept of them: on every verb that reads a job, in results and on disk."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from testkit import toy_job

from mtlc.cli import VERBS, main

MORE = '[[passes]]\nname = "prune"\nround_to = 4\nsensitivity = []\n[budget]\nmacs = "80%"\n[train]\nepochs = 1\n'
READ_A_JOB = {
    "compare", "export", "inspect", "plan", "quantize", "run", "search", "slim", "sweep", "trace", "train", "verify",
    "fpga simulate", "fpga search",
}  # fmt: skip


def mtlc(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result


def commands() -> dict[str, click.Command]:
    context, found = click.Context(main), {}
    for verb in VERBS:
        command = main.get_command(context, verb)
        inner = command.commands if isinstance(command, click.Group) else {}
        found |= {f"{verb} {name}": one for name, one in inner.items()} or {verb: command}
    return found


def test_every_verb_that_reads_a_job_takes_overrides():
    takes = {name: {option for p in one.params for option in p.opts} for name, one in commands().items()}
    reads = {name for name, one in commands().items() if any(p.name == "job" for p in one.params)}
    assert reads == READ_A_JOB
    assert {name for name, options in takes.items() if "--set" in options} == READ_A_JOB
    assert {name for name, options in takes.items() if "--quiet" in options} == {
        name for name, options in takes.items() if "--log-level" in options
    }


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return toy_job.write(tmp_path, toy_job.JOB, MORE)


def test_a_run_with_another_value_is_another_run_and_says_so(job):
    out = job.with_name("out")
    mtlc("run", job, "--out", out, "--quiet")
    assert (out / "job-as-run.toml").read_text() == job.read_text()
    assert "overrides" not in json.loads((out / "results.json").read_text())
    steps = {path.name for path in (out / "steps").iterdir()}
    again = mtlc("run", job, "--out", out)
    assert "prune: done before" in again.stderr

    changed = mtlc("run", job, "--out", out, "--set", "passes.0.round_to=2", "--set", "budget.params=90%")
    assert "done before" not in changed.stderr
    assert len({path.name for path in (out / "steps").iterdir()} - steps) == 1
    results = json.loads((out / "results.json").read_text())
    assert results["overrides"] == {"passes.0.round_to": 2, "budget.params": "90%"}
    assert results["job"]["passes"][0]["round_to"] == 2
    assert results["budget"]["kind"] == "params"
    kept = tomllib.loads((out / "job-as-run.toml").read_text())
    assert kept["passes"][0]["round_to"] == 2
    assert kept["budget"] == {"params": "90%"}
    assert "set over the file" in (out / "report.html").read_text()
    same = mtlc("run", job, "--out", out, "--set", "budget.params=90%", "--set", "passes.0.round_to=2")
    assert "prune: done before" in same.stderr

    # The file that was kept is a job that does the same.
    kept_job = toy_job.write(job.parent / "again", (out / "job-as-run.toml").read_text())
    assert "prune: done before" in mtlc("run", kept_job, "--out", out).stderr


def test_other_verbs_say_what_was_set(job):
    plan = json.loads(mtlc("plan", job, "--set", "passes.0.round_to=2", "--json", "--quiet").stdout)
    assert plan["passes"][0]["config"]["round_to"] == 2
    assert plan["overrides"] == {"passes.0.round_to": 2}
    weights = job.with_name("w.safetensors")
    mtlc("train", job, "--out", weights, "--set", "train.epochs=2", "--quiet")
    told = json.loads(weights.with_suffix(".train.json").read_text())
    assert (told["config"]["epochs"], told["overrides"]) == (2, {"train.epochs": 2})
    shown = json.loads(mtlc("inspect", job, "--set", "passes.0.round_to=2", "--json").stdout)
    assert shown["passes"][0]["config"]["round_to"] == 2
    made = mtlc("export", job, "--out", job.with_name("bundle"), "--set", "tasks.depth.outptu=x", code=2)
    assert "did you mean 'output'?" in made.stderr
    assert not job.with_name("bundle").exists()


def test_what_reads_no_job_has_nothing_to_set(job):
    bundle = job.with_name("bundle")
    mtlc("export", job, "--out", bundle, "--quiet")
    line = mtlc("verify", bundle, "--set", "seed=1", code=2).stderr
    assert line == "error: --set changes a job: name it with --job\n"
    pair = (bundle, "--against-backend", "openvino", "--job", job)
    verified = mtlc("verify", *pair, "--set", "data.args.calibration=3", "--json")
    assert json.loads(verified.stdout)["samples"] == 3


@pytest.mark.parametrize(
    ("options", "seen", "unseen"),
    [
        ((), ["reading the data"], ["torch "]),
        (("--log-level", "debug"), ["reading the data", "torch ", "seed 0, passes.0.round_to=2", " s] "], []),
        (("--log-level", "error"), [], ["reading", "warning"]),
        (("--quiet",), [], ["reading the data"]),
        (("--quiet", "--log-level", "error"), [], ["reading the data"]),
    ],
)
def test_levels(job, options, seen, unseen):
    shown = mtlc("plan", job, "--set", "passes.0.round_to=2", *options).stderr
    assert [text for text in seen if text not in shown] == []
    assert [text for text in unseen if text in shown] == []


def test_quiet_and_another_level_are_a_contradiction(job):
    line = mtlc("plan", job, "--quiet", "--log-level", "debug", code=2).stderr
    assert line == "error: --quiet is --log-level error: leave it out, or --log-level debug\n"
    assert "Invalid value for '--log-level'" in mtlc("plan", job, "--log-level", "loud", code=2).stderr
