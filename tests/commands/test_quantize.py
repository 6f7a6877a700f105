"""``mtlc quantize`` and ``[quantize]`` of a job, through the command line."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from testkit import toy_job

from mtlc.cli import main
from mtlc.errors import UserError
from mtlc.job.job import Job, load_job
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
    assert "int8 - float, 95 %" in result.stdout.splitlines()[0]
    assert f"bundle: {tmp_path / 'one.mtlc'}" in result.stdout
    with open_bundle(tmp_path / "one.mtlc") as opened:
        assert (opened.manifest.quantization.target, opened.manifest.quantization.weights) == ("arm", "full")


def test_the_page_is_written_beside_the_bundle_and_never_in_it(ran, tmp_path):
    job, found = ran
    bundle = found["bundles"]["after"]["path"]
    arguments = ("quantize", bundle, "--job", job, "--quiet", "--out", tmp_path / "int8", "--html")
    result = call(*arguments, tmp_path / "int8.html", "--json")
    assert result.exit_code == 0, result.output
    made, page = json.loads(result.stdout), (tmp_path / "int8.html").read_text()
    assert (made["bundle"], made["job"], made["against"]) == (bundle, str(job), None)
    assert f"{made['tasks']['depth']['validation']['int8']:.4g}" in page
    assert "Every task kept its limit." in page
    for wrong in (tmp_path / "int8" / "page.html", f"{bundle}/page.html"):
        result = call(*arguments, wrong)
        assert (result.exit_code, "lies in the bundle" in result.stderr) == (2, True)
    result = call(*arguments, tmp_path)
    assert (result.exit_code, "is a folder: name a file" in result.stderr) == (2, True)
    assert {path.name for path in tmp_path.iterdir()} == {"int8", "int8.html"}


def test_the_report_of_a_run_has_the_section(ran):
    job, found = ran
    page = (job.parent / "job-out" / "report.html").read_text()
    assert '<section id="quantization"' in page
    assert f"{found['quantization']['operators']['int8']} operators run in INT8 for the target x86" in page


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


def test_what_can_be_told_is_told_before_the_data_are_read(ran, tmp_path, monkeypatch):
    job, found = ran
    bundle = Path(found["bundles"]["after"]["path"])
    monkeypatch.setattr(Job, "load_splits", lambda self: pytest.fail("the data were read"))
    (tmp_path / "file").write_text("")
    pair = (tmp_path / "pair", '[tasks.semseg]\nloss = "cross_entropy"\nmetric = "miou"\n')
    renamed = toy_job.write(pair[0], LIMITS.replace(pair[1], pair[1].replace("[tasks.semseg]", "[tasks.classes]")))
    before = sorted(tmp_path.rglob("*"))
    out = ("--out", tmp_path / "b")
    for arguments, message in (
        ((tmp_path / "none", "--job", job, *out), "none: no such bundle"),
        ((bundle, "--job", job, *out, "--target", "x68"), "target = 'x68': no such target; did you mean 'x86'?"),
        ((bundle, "--job", job, *out, "--backend", "openvin"), "did you mean 'openvino'?"),
        ((bundle, "--job", job, *out, "--against", tmp_path / "none"), "none: no such bundle"),
        ((bundle, "--job", job, "--out", tmp_path / "file"), "file: is a file; name a folder"),
        ((bundle, "--job", job, "--out", tmp_path / "file" / "b"), "b: cannot be written (Not a directory)"),
        ((bundle, "--job", job, *out, "--html", tmp_path / "file" / "x"), "x: cannot be written (Not a directory)"),
        ((bundle, "--job", job, "--out", bundle), f"{bundle}: is the bundle {bundle}"),
        ((bundle, "--job", job, "--out", bundle / "int8"), f"int8: lies in the bundle {bundle}"),
        ((bundle, "--job", renamed, *out), "its task 'semseg' is not one of"),
    ):
        result = call("quantize", *arguments, "--quiet")
        assert result.exit_code == 2, result.output
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_machine_without_nncf_is_told_what_to_install(ran, tmp_path, monkeypatch):
    job, found = ran
    monkeypatch.setattr(Job, "load_splits", lambda self: pytest.fail("the data were read"))
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.setattr("mtlc.workflows.quantize.version", lambda name: pytest.fail(f"{name} was looked for"))
    result = call("quantize", found["bundles"]["after"]["path"], "--job", job, "--out", tmp_path / "b", "--quiet")
    assert result.exit_code == 5
    assert "pip install 'mtlc[compress]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_bundle_built_for_one_backend_is_not_quantised(ran, tmp_path):
    pytest.importorskip("openvino")
    job, found = ran
    built = call(
        "build", found["bundles"]["after"]["path"], "--target", "openvino", "--out", tmp_path / "ir", "--quiet"
    )
    assert built.exit_code == 0, built.output
    result = call("quantize", tmp_path / "ir", "--job", job, "--out", tmp_path / "b", "--quiet")
    assert result.exit_code == 2
    assert "ir: holds OpenVINO IR of the float graphs: quantise the bundle that `mtlc build` was given" in result.stderr


def test_limits_of_a_bundle_without_the_task(ran, tmp_path):
    job, found = ran
    other = tmp_path / "other"
    shutil.copytree(found["bundles"]["before"]["path"], other)
    described = json.loads((other / "manifest.json").read_text())
    described["tasks"].pop("semseg")
    described["programs"] = [
        {**program, "tasks": ["depth"]} for program in described["programs"] if "depth" in program["tasks"]
    ]
    described["configurations"] = [{"name": "default", "programs": [one["name"] for one in described["programs"]]}]
    (other / "manifest.json").write_text(json.dumps(described))
    arguments = (
        found["bundles"]["after"]["path"],
        "--job",
        job,
        "--out",
        tmp_path / "b",
        "--against",
        other,
        "--quiet",
    )
    result = call("quantize", *arguments)
    assert result.exit_code == 2
    assert f"--against {other}: has no task 'semseg' to measure limits against" in result.stderr


def test_the_section_is_checked(tmp_path):
    with pytest.raises(
        UserError, match=r"\[quantize\] target: input should be 'cpu', 'x86', 'x86-vnni', 'arm' or 'tensorrt'"
    ):
        load_job(toy_job.write(tmp_path, toy_job.JOB, '[quantize]\ntarget = "npu"\n'))
    with pytest.raises(UserError, match=r"\[quantize\] sampels: unknown key; did you mean 'samples'"):
        load_job(toy_job.write(tmp_path, toy_job.JOB, "[quantize]\nsampels = 3\n"))
