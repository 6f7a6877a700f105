"""``mtlc quantize`` and ``[quantize]`` of a job, through the command line."""

from __future__ import annotations

import json

import pytest
import toy_job
from click.testing import CliRunner

from mtlc.cli import main
from mtlc.errors import UserError
from mtlc.job import Job, load_job
from mtlc.runtime import open_bundle

QUANTIZE = '[quantize]\ntarget = "x86"\nsamples = 4\n'
LIMITS = toy_job.JOB.replace('metric = "rmse"\n', 'metric = "rmse"\nmax_drop = "1%"\n')
REPORT = "[report]\ndevices = []\npictures = 0\n"


def call(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run of a job with a [quantize] section."""
    job = toy_job.write(tmp_path_factory.mktemp("toy"), LIMITS, QUANTIZE, REPORT)
    result = call("run", job, "--json", "--quiet")
    assert result.exit_code == 0, result.output
    return job, json.loads(result.stdout)


def test_a_run_with_the_section_writes_an_int8_bundle_too(ran):
    job, found = ran
    made = found["quantization"]
    assert made["path"] == str(job.parent / "job-out" / "bundle-int8")
    with open_bundle(made["path"]) as opened:
        assert opened.manifest.quantization.target == "x86"
    assert made["samples"] == {"ranges": 4, "control": 8}
    assert made["tasks"]["depth"]["validation"]["within"] is True
    assert made["tasks"]["semseg"]["validation"]["within"] is None
    assert json.loads((job.parent / "job-out" / "results.json").read_text())["quantization"] == made


def test_the_verb_quantises_a_bundle(ran, tmp_path):
    job, found = ran
    bundle = found["bundles"]["after"]["path"]
    result = call("quantize", bundle, "--job", job, "--out", tmp_path / "one.mtlc", "--target", "arm", "--quiet")
    assert result.exit_code == 0, result.output
    assert "in INT8" not in result.stdout.splitlines()[0]
    assert "operators in INT8 for arm" in result.stdout
    assert f"bundle: {tmp_path / 'one.mtlc'}" in result.stdout
    with open_bundle(tmp_path / "one.mtlc") as opened:
        assert (opened.manifest.quantization.target, opened.manifest.quantization.weights) == ("arm", "full")


def test_bad_input_is_one_line(ran, tmp_path):
    job, found = ran
    bundle = found["bundles"]["after"]["path"]
    result = call("quantize", bundle, "--job", job, "--out", tmp_path / "b", "--target", "armm")
    assert result.exit_code == 2
    assert "target = 'armm': no such target; did you mean 'arm'?" in result.stderr
    result = call("quantize", found["quantization"]["path"], "--job", job, "--out", tmp_path / "b")
    assert result.exit_code == 2
    assert "is in int8 already" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bundle": "missing"}, "missing: no such bundle"),
        ({"--out": "taken"}, "taken"),
        ({"--target": "armm"}, "did you mean 'arm'?"),
        ({"--backend": "openvin"}, "did you mean 'openvino'?"),
        ({"--against": "missing"}, "missing: no such bundle"),
    ],
)
def test_what_is_wrong_is_said_before_the_data_is_read(ran, tmp_path, monkeypatch, options, message):
    job, found = ran
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    monkeypatch.setattr(Job, "load_splits", lambda self: pytest.fail("the data was read"))
    given = {"bundle": found["bundles"]["after"]["path"], "--job": job, "--out": "new", **options}
    bundle = given.pop("bundle")
    result = call("quantize", bundle, *(part for pair in given.items() for part in pair))
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "new").exists()


def test_the_section_is_checked(tmp_path):
    with pytest.raises(
        UserError, match=r"\[quantize\] target: input should be 'cpu', 'x86', 'x86-vnni', 'arm' or 'tensorrt'"
    ):
        load_job(toy_job.write(tmp_path, toy_job.JOB, '[quantize]\ntarget = "npu"\n'))
    with pytest.raises(UserError, match=r"\[quantize\] sampels: unknown key; did you mean 'samples'"):
        load_job(toy_job.write(tmp_path, toy_job.JOB, "[quantize]\nsampels = 3\n"))
