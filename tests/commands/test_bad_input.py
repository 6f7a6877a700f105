"""Bad input, one by one: exit code 2, exactly one line on stderr that names the culprit, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from testkit import toy_job
from testkit.places import environment

from mtlc import files
from mtlc.cli import main

BUDGET = '[budget]\nmacs = "60%"\n'
PRUNE = '[[passes]]\nname = "prune"\nround_to = 1\n'
ONE_TASK = toy_job.JOB.replace('[tasks.semseg]\nloss = "cross_entropy"\nmetric = "miou"\n', "")


def mtlc(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def refused(result: Result, *words: str, code: int = 2) -> None:
    """The result is one line on stderr with all `words`, and the exit code."""
    assert result.exit_code == code, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.output
    for word in words:
        assert word in lines[0], lines[0]


def run(job: Path, *words: str, code: int = 2) -> None:
    """`mtlc run` on the job is refused, and leaves no output folder."""
    before = sorted(job.parent.rglob("*"))
    refused(mtlc("run", job, "--quiet"), *words, code=code)
    assert sorted(job.parent.rglob("*")) == before


def changed(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


def users(reference: str) -> str:
    """The toy job with one callable of its user's replaced: ``"metric:Text"`` is `broken_code.Text`, for depth."""
    what, _, name = reference.partition(":")
    old = {"data": "testkit.toy_job:pictures", "net": "testkit.toy_job:net", "loss": "l1", "metric": "rmse"}[what]
    return changed(toy_job.JOB, f'"{old}"', f'"testkit.broken_code:{name}"')


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (changed(toy_job.JOB, "loss =", "los ="), ["job.toml: [tasks.depth] los: unknown key; did you mean 'loss'?"]),
        (
            changed(toy_job.JOB, "testkit.toy_job:net", "testkit.toy_job:nett"),
            ["[model] factory", "did you mean 'net'?"],
        ),
        (
            changed(toy_job.JOB, "testkit.toy_job:net", "no_such_module:net"),
            ["[model] factory", "no module 'no_such_module'"],
        ),
        (
            changed(toy_job.JOB, "testkit.toy_job:net", "testkit.toy_job:raises"),
            ["testkit.toy_job:raises", "raised RuntimeError: no such"],
        ),
        (
            changed(toy_job.JOB, "[tasks.depth]", 'weights = "w.safetensors"\n[tasks.depth]'),
            ["weights", "does not exist"],
        ),
        (toy_job.JOB + "[model.args]\nwide = 3\n", ["[model] factory", "TypeError", "wide"]),
        (ONE_TASK, ["output 'semseg' maps to no task", "ignore_outputs"]),
        (changed(toy_job.JOB, "[tasks.semseg]", "[tasks.normals]"), ["task 'normals'", "no output 'normals'"]),
        (changed(toy_job.JOB, '"rmse"\n', '"rmse"\ntarget = "semseg"\n'), ["[tasks.depth] loss = 'l1'"]),
        (changed(toy_job.JOB, '"rmse"\n', '"rmse"\ntarget = "deep"\n'), ["[tasks.depth]", "no 'deep'"]),
        (changed(toy_job.JOB, '"l1"', '"l1_loss"'), ["unknown loss 'l1_loss'"]),
        (changed(toy_job.JOB, '"rmse"', '"rmsd"'), ["[tasks.depth]", "rmsd"]),
        (toy_job.JOB + "[data.args]\ncalibration = 0\n", ["the calibration split is empty"]),
        (toy_job.JOB + '[data.args]\nbroken = "images"\n', ["task 'depth'", "nan"]),
        (
            toy_job.JOB + BUDGET.replace("60%", "0.5%") + PRUNE,
            ["[[passes]] 1 (line 14) 'prune': [budget] macs", "under what pruning can reach"],
        ),
        (
            changed(toy_job.JOB, "testkit.toy_job:net", "testkit.toy_job:leaves_torch") + BUDGET + PRUNE,
            ["[model] the network's forward"],
        ),
        (
            changed(toy_job.JOB, "testkit.toy_job:net", "testkit.toy_job:untraceable") + BUDGET + PRUNE,
            ["[[passes]] 1 (line 14) 'prune': a training step", "does not require grad"],
        ),
        (
            toy_job.JOB + BUDGET + PRUNE + "initial_rate = 0.2\ninitial_thres = 1.2\n",
            ["[[passes]] 1 (line 14) 'prune'", "initial_thres"],
        ),
        (
            toy_job.JOB + '[[passes]]\nname = "qat"\ntarget = "x86-vni"\n',
            ["[[passes]] 1 (line 12) 'qat'", "target = 'x86-vni': no such target; did you mean 'x86-vnni'?"],
        ),
        (
            toy_job.JOB + '[[passes]]\nname = "qat"\ncalibration_samples = 0\n',
            ["[[passes]] 1 (line 12) 'qat'", "calibration_samples"],
        ),
        (toy_job.JOB + '[report]\nbaselines = "none.json"\n', ["[report] baselines", "none.json does not exist"]),
        (toy_job.JOB + '[report]\ndevices = ["local_cpu"]\n', ["[report] devices", "did you mean 'local-cpu'?"]),
        (toy_job.JOB + '[budget]\nlatency = "5ms"\ndevice = "zcu103"\n', ["[budget] device", "no device 'zcu103'"]),
        (
            toy_job.JOB + '[budget]\nlatency = "5ms"\ndevice = "zcu104"\n',
            ["[budget] device: device 'zcu104': latency is measured, and only on this machine: use 'local-cpu'"],
        ),
        (toy_job.JOB + '[report]\ndevices = ["mine.toml"]\n', ["[report] devices: ", "mine.toml: no such device file"]),
        (toy_job.JOB + PRUNE, ["[[passes]] 1 (line 12) 'prune'", "needs a [budget]"]),
        (
            toy_job.JOB + BUDGET + PRUNE + 'ignore = ["decoder.*"]\n',
            ["(line 14) 'prune'", "'decoder.*' matches no layer"],
        ),
        (
            toy_job.JOB + BUDGET + changed(PRUNE, "= 1", '= "8"'),
            ["(line 14) 'prune' round_to", "valid integer, not '8'"],
        ),
        (
            toy_job.JOB + BUDGET + PRUNE + "finetune = {epochs = -1}\n",
            ["[finetune] epochs", "must be a finite number above 0"],
        ),
        (toy_job.JOB + BUDGET + PRUNE + "finetune = {lr = inf}\n", ["[finetune] lr", "finite number"]),
        (
            changed(toy_job.JOB, "[tasks.depth]", '[tasks."depth map"]'),
            ["job.toml: [tasks]: task 'depth map'", "letters"],
        ),
        (
            changed(toy_job.JOB, "schema = 1", "schema = 1\ntasks = {}").replace("[tasks.", "[data.args."),
            ["[tasks]", "empty"],
        ),
        (users("data:raises"), ["[data] Broken.batch: FileNotFoundError: 7.png"]),
        (users("data:arrays"), ["[data] Broken.batch must return a dict of tensors"]),
        (users("data:sizes"), ["[data] samples of Plain do not stack", "[3, 20, 20]"]),
        (users("data:keys"), ["[data] sample 3 of Plain: KeyError: 'depth'"]),
        (users("data:colour"), ["[data] preprocessing.colour is unknown"]),
        (users("data:text"), ["[data] preprocessing must be a table"]),
        (
            users("net:small_batches"),
            ["[model] the network cannot run on the data (image (8, 3, 16, 16))", "too large"],
        ),
        (users("loss:per_pixel"), ["[tasks.depth] loss", "gives a tensor (1, 1, 16, 16)"]),
        (users("loss:raising_loss"), ["[tasks.depth] loss", "does not fit", "KeyError: 'scale'"]),
        (users("metric:Raises"), ["[tasks.depth] metric", "raised AttributeError: nothing"]),
        (users("metric:Text"), ["[tasks.depth] metric", "could not convert string to float: 'high'"]),
        (users("metric:Heatmap"), ["[tasks.depth] metric", "of kind 'heatmap'"]),
    ],
)
def test_a_job_that_cannot_run(tmp_path, text, words):
    run(toy_job.write(tmp_path, text), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (toy_job.JOB + '[report]\ndevices = ["local_cpu"]\n', ["[report] devices"]),
        (toy_job.JOB + '[report]\nbaselines = "none.json"\n', ["[report] baselines"]),
        (toy_job.JOB + PRUNE, ["'prune'", "needs a [budget]"]),
        (toy_job.JOB + BUDGET + PRUNE + 'ignore = ["decoder.*"]\n', ["(line 14) 'prune'", "matches no layer"]),
    ],
)
def test_plan_refuses_what_run_would_refuse(tmp_path, text, words):
    refused(mtlc("plan", toy_job.write(tmp_path, text), "--quiet"), *words)


@pytest.mark.parametrize(
    ("text", "word"), [('{"depth": 1}', "no metric for task 'semseg'"), ('{"depth": NaN, "semseg": 1}', "is nan")]
)
def test_baselines_that_are_none(tmp_path, text, word):
    (tmp_path / "single.json").write_text(text)
    run(toy_job.write(tmp_path, toy_job.JOB, '[report]\nbaselines = "single.json"\n'), "[report] baselines", word)


def test_no_passes_cannot_meet_a_budget(tmp_path):
    result = mtlc("run", toy_job.write(tmp_path, toy_job.JOB, BUDGET), "--quiet")
    refused(result, "[budget] macs", "the job has no [[passes]]", code=3)


def test_folders_where_files_belong(tmp_path):
    job = toy_job.write(tmp_path, changed(toy_job.JOB, "[tasks.depth]", 'weights = "w.safetensors"\n[tasks.depth]'))
    (tmp_path / "w.safetensors").mkdir()
    refused(mtlc("plan", tmp_path), "is a folder; name the job file, such as", str(job))
    refused(mtlc("plan", job, "--quiet"), "w.safetensors: is a folder")
    refused(mtlc("train", job, "--quiet"), "w.safetensors: is a folder")
    assert not (tmp_path / "w.safetensors.training").exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    job = toy_job.write(tmp_path)
    for arguments in (["run", job, "--quiet", "--out"], ["init"]):
        refused(mtlc(*arguments, tmp_path / ("a" * 300)), "cannot be made (File name too long)")
    assert list(tmp_path.iterdir()) == [job]


@pytest.mark.parametrize("text", ['{"schema": 1}', None])
def test_a_damaged_checkpoint(tmp_path, text):
    from mtlc.job.job import load_job
    from mtlc.workflows.opened_job import open_job

    job = toy_job.write(tmp_path)
    open_job(load_job(job)).program.save(tmp_path / "program")
    description = tmp_path / "program" / "program.json"
    values = json.loads(description.read_text())
    values["tasks"][0].pop("metric")
    description.write_text(text or json.dumps(values))
    refused(
        mtlc("inspect", tmp_path / "program", "--job", job), "program.json: damaged", "factory" if text else "metric"
    )


@pytest.mark.parametrize("content", [b"x", b"PK\x03\x04 cut off"])
def test_pictures_that_are_none(tmp_path, content):
    (tmp_path / "results.json").write_text('{"tasks": {}}')
    (tmp_path / "pictures.npz").write_bytes(content)
    refused(mtlc("report", tmp_path), "pictures.npz: damaged; delete it")
    assert not (tmp_path / "report.html").exists()


def test_files_that_are_not_there(tmp_path):
    for verb in ("run", "plan", "train"):
        refused(mtlc(verb, tmp_path / "job.toml", "--quiet"), "job.toml: no such file")
    refused(mtlc("inspect", tmp_path / "thing"), "thing: no such file")
    refused(mtlc("verify", tmp_path / "thing"), "thing: no such bundle")
    refused(mtlc("report", tmp_path), "results.json")
    refused(mtlc("infer", tmp_path / "bundle", tmp_path / "cat.png"), "cat.png: no such picture")
    assert not list(tmp_path.iterdir())


def test_nan_labels_stop_training(tmp_path):
    job = toy_job.write(
        tmp_path,
        changed(toy_job.JOB, "testkit.toy_job:pictures", "testkit.toy_job:nan_training"),
        '[train]\nepochs = 1\nprecision = "float32"\n',
    )
    refused(mtlc("train", job, "--quiet", "--out", tmp_path / "w.safetensors"), "task 'depth'", "nan")
    assert not (tmp_path / "w.safetensors").exists()


def test_an_output_folder_that_is_a_file(tmp_path):
    job = toy_job.write(tmp_path / "job")
    (tmp_path / "out").write_text("mine")
    refused(mtlc("run", job, "--quiet", "--out", tmp_path / "out"), str(tmp_path / "out"), "cannot be written")
    assert (tmp_path / "out").read_text() == "mine"


@contextmanager
def mounted(folder: Path, options: str):
    """A tmpfs with these options at `folder`; the test is skipped where it cannot be made."""
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


FINETUNE = '[[passes]]\nname = "calibrate"\nsamples = 8\n'


def test_a_read_only_folder(tmp_path):
    job = toy_job.write(tmp_path / "job", toy_job.JOB, FINETUNE)
    with mounted(tmp_path / "disk", "ro") as disk:
        result = mtlc("run", job, "--quiet", "--out", disk / "out")
        refused(result, str(disk / "out"), "cannot be written", "choose another output folder")


@pytest.mark.parametrize("size", ["4k", "180k"])
def test_a_full_disk(tmp_path, size):
    """4 kB do not hold the first step; 180 kB hold the step and both bundles, but not the checkpoint after them."""
    job = toy_job.write(tmp_path / "job", toy_job.JOB + "[model.args]\nwidth = 32\n", FINETUNE)
    with mounted(tmp_path / "disk", f"size={size}") as disk:
        refused(mtlc("run", job, "--quiet", "--out", disk / "out"), "the disk is full", "free some space")
        assert not (disk / "out" / "results.json").exists()
        assert not [path for path in disk.rglob("*") if path.name.startswith(".")], "no temporary files stay"
        for manifest in disk.rglob("manifest.json"):
            assert mtlc("verify", manifest.parent).exit_code == 0


def test_a_disk_that_fills_up_at_the_end(tmp_path, monkeypatch):
    """The same where nothing can be mounted, when a step's folder is whole but for its last write."""
    job = toy_job.write(tmp_path, toy_job.JOB, FINETUNE)

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "_fsync", full)
    run(job, "the disk is full")


def test_two_runs_in_one_folder(tmp_path):
    from mtlc.workflows.output_folder import output_folder

    job = toy_job.write(tmp_path / "job")
    with output_folder(tmp_path / "out"):
        refused(mtlc("run", job, "--quiet", "--out", tmp_path / "out"), "another run is using this folder")
    with output_folder(tmp_path / "out"):
        pass
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"tasks": 3}', '{"tasks": {"depth": {}}}'])
def test_results_that_are_none(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    refused(mtlc("report", tmp_path), "results.json")
    assert not (tmp_path / "report.html").exists()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """A bundle of the toy network."""
    from mtlc.evaluation.splits import fetch
    from mtlc.export import export_bundle
    from mtlc.job.job import load_job
    from mtlc.workflows.opened_job import open_job

    opened = open_job(load_job(toy_job.write(tmp_path_factory.mktemp("job"))))
    samples = {"image": fetch(opened.splits.calibration, range(4))["image"]}
    target = tmp_path_factory.mktemp("bundle") / "toy"
    export_bundle(opened.program, target, samples=samples, criteria=opened.criteria)
    return target


@pytest.mark.parametrize("verb", ["verify", "inspect", "infer", "profile"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "no manifest", "schema", "zip"])
def test_a_damaged_bundle(tmp_path, bundle, verb, damage):
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    weights = copy / "weights.bin"
    manifest = json.loads((copy / "manifest.json").read_text())
    match damage:
        case "flip":
            data = bytearray(weights.read_bytes())
            data[len(data) // 2] ^= 1
            weights.write_bytes(data)
        case "truncate":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "delete":
            weights.unlink()
        case "no manifest":
            (copy / "manifest.json").unlink()
        case "schema":
            (copy / "manifest.json").write_text(json.dumps(manifest | {"schema": 99}))
        case "zip":
            archive = tmp_path / "archive"
            with zipfile.ZipFile(archive, "w") as target:
                for path in copy.iterdir():
                    target.write(path, path.name)
            archive.write_bytes(archive.read_bytes()[:-200])
            copy = archive
    image = tmp_path / "image.png"
    image.write_bytes(b"not looked at before the bundle is")
    arguments = [copy, image] if verb == "infer" else [copy]
    refused(mtlc(verb, *arguments), str(copy))
    assert not list(tmp_path.glob("*.png")) or list(tmp_path.glob("*.png")) == [image]


def test_a_picture_that_is_none(tmp_path, bundle):
    image = tmp_path / "image.png"
    image.write_bytes(b"no picture")
    refused(mtlc("infer", bundle, image, "--out", tmp_path / "out"), "image.png", "not a picture")
    assert not (tmp_path / "out").exists()


def test_the_folder_of_a_run_is_no_bundle(bundle):
    (link := bundle.parent / "bundle").symlink_to(bundle)
    refused(mtlc("verify", bundle.parent), "not a bundle", f"{link} may be one")


def test_a_bundle_against_itself(bundle):
    refused(mtlc("profile", bundle, "--against", bundle / ".." / bundle.name), "is the same bundle")


def test_a_task_that_the_bundle_does_not_have(tmp_path, bundle):
    from PIL import Image

    Image.new("RGB", (20, 20)).save(tmp_path / "image.png")
    arguments = ("infer", bundle, tmp_path / "image.png", "--out", tmp_path / "out")
    refused(mtlc(*arguments, "--task", "dept"), "no task 'dept'; did you mean 'depth'?")
    refused(mtlc(*arguments, "--backend", "openvinu"), "openvinu", code=5)
    assert not (tmp_path / "out").exists()


def test_in_a_real_process_there_is_one_line_too(tmp_path):
    job = toy_job.write(tmp_path, changed(toy_job.JOB, "testkit.toy_job:net", "testkit.toy_job:raises"))
    done = subprocess.run(
        [sys.executable, "-m", "mtlc.cli", "run", str(job), "--quiet"],
        capture_output=True, text=True, check=False, env=environment(),
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "error: [model] factory = 'testkit.toy_job:raises' raised RuntimeError: no such"
    ]
