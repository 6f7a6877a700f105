"""The command line: streams, exit codes, speed, and the way from a starter job to a picture of a task."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from testkit import toy_job
from testkit.places import environment

from mtlc.cli import main
from mtlc.workflows import run as run_module

VERBS = ["init", "plan", "run", "train", "slim", "search", "inspect", "verify", "infer", "profile", "report", "doctor"]
VERBS += ["bench", "devices", "calibrate", "compare", "export", "build", "quantize"]
PRUNE = '[[passes]]\nname = "prune"\nround_to = 1\n'
TRAIN = "[train]\nepochs = 2\nbatch_size = 8\n"
CALIBRATE = '[[passes]]\nname = "calibrate"\nsamples = 16\nbatch_size = 8\n'


def mtlc(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result


def python(*args: object, **kwargs) -> subprocess.CompletedProcess:
    command = [sys.executable, *(str(arg) for arg in args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), **kwargs)


def test_help_imports_nothing_heavy():
    done = python("-m", "mtlc.cli", "--help")
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in VERBS)
    code = "import sys; before = set(sys.modules); import mtlc.cli; print(*(set(sys.modules) - before))"
    loaded = python("-c", code).stdout.split()
    assert not {"torch", "numpy", "pydantic", "onnxruntime"} & set(loaded)
    assert len(loaded) < 130  # a stand-in for seconds, which hang on the machine
    shown = python("-X", "importtime", "-m", "mtlc.cli", "--help").stderr  # this imports the module of each verb
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in shown.splitlines()}
    assert "click" in imported
    assert not {"torch", "numpy", "pydantic", "onnxruntime"} & imported


@pytest.mark.slow
def test_help_is_fast():
    took = []
    for _ in range(5):
        started = time.perf_counter()
        python("-m", "mtlc.cli", "--help")
        took.append(time.perf_counter() - started)
    assert min(took) < 0.25


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_completion_is_made(shell):
    done = completion(f"{shell}_source")
    assert done.returncode == 0, done.stderr
    assert f"_MTLC_COMPLETE={shell}_complete" in done.stdout
    assert "mtlc" in done.stdout


@pytest.mark.parametrize(
    ("words", "found"),
    [("mtlc qua", {"quantize"}), ("mtlc run --se", {"--set"}), ("mtlc plan j --log-level w", {"warning"})],
)
def test_verbs_options_and_choices_complete(words, found):
    done = completion("bash_complete", COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - 1))
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == found


def completion(instruction: str, **variables: str) -> subprocess.CompletedProcess:
    """What the command `mtlc` answers to a shell: as installed, its name says which variable is meant."""
    code = "from mtlc.cli import main; main(prog_name='mtlc')"
    shown = environment() | {"_MTLC_COMPLETE": instruction} | variables
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=shown)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_debug(verb):
    text = mtlc(verb, "--help").stdout
    assert "--debug" in text
    assert ("--json" in text) == (verb != "init")
    options = re.findall(r"--[\w-]+", text)
    assert all(option == option.lower() and "_" not in option for option in options)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["docter"], "error: no such verb 'docter'; did you mean 'doctor'?"),
        (["run"], "error: Missing argument 'JOB'. (see: main run --help)"),
        (["run", "job.toml", "--oot", "x"], "error: No such option"),
        (["profile", "x", "--batch", "0"], "error: Invalid value for '--batch'"),
    ],
)
def test_wrong_usage_is_one_line_and_2(arguments, line):
    result = mtlc(*arguments, code=2)
    assert result.stderr.startswith(line)
    assert len(result.stderr.splitlines()) == 1


def test_no_verb_shows_the_help_and_is_2():
    result = mtlc(code=2)
    assert result.stdout == ""
    assert result.stderr == mtlc("--help").stdout


def test_init_writes_a_job_once(tmp_path):
    assert mtlc("init", tmp_path / "new").stdout == f"{tmp_path / 'new' / 'job.toml'}\n"
    (tmp_path / "new" / "job.toml").write_text("mine")
    result = mtlc("init", tmp_path / "new", code=2)
    assert "exists; --force overwrites it" in result.stderr
    assert (tmp_path / "new" / "job.toml").read_text() == "mine"
    mtlc("init", tmp_path / "new", "--force")
    assert "schema = 1" in (tmp_path / "new" / "job.toml").read_text()


def test_doctor(monkeypatch):
    found = json.loads(mtlc("doctor", "--json").stdout)
    assert found["packages"]["torch"]["version"]
    assert found["cpu"]["threads"] >= 1
    assert set(found["cpu"]["flags"]) >= {"avx2", "vnni"}
    for name in found["missing"]:
        assert found["packages"][name]["install"].startswith("pip install ")
    assert "onnxruntime" in mtlc("doctor").stdout


def test_doctor_says_how_to_get_what_is_missing(monkeypatch):
    from mtlc.workflows import doctor

    monkeypatch.setattr(doctor, "_version", lambda package: None if package == "openvino" else "1.0")
    found = doctor.doctor()
    assert found.missing == ["openvino"]
    assert found.packages["openvino"].install == "pip install 'mtlc[openvino]'"
    here = found.tensorrt.module is not None and found.tensorrt.gpu is not None
    assert found.backends == {"onnxruntime": True, "openvino": False, "tensorrt": here}


def test_a_fault_of_ours_is_one_line_unless_debug(tmp_path, monkeypatch):
    def fault(*args, **kwargs):
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr(run_module, "run_job", fault)
    job = toy_job.write(tmp_path)
    result = mtlc("run", job, code=1)
    assert result.stderr == "error: ZeroDivisionError: a (a fault in mtlc; run with --debug for the traceback)\n"
    assert "Traceback" in mtlc("run", job, "--debug", code=1).stderr


def test_an_interrupt_is_one_line_and_130(tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "run_job", interrupt)
    result = mtlc("run", toy_job.write(tmp_path), code=130)
    assert result.stderr.strip() == "error: interrupted; the same command goes on from the last finished step"


def test_without_the_extra_it_says_how_to_get_it(tmp_path):
    code = "import sys; sys.modules['torch'] = None; from mtlc.cli import main; main()"
    done = python("-c", code, "plan", toy_job.write(tmp_path))
    assert done.returncode == 5
    assert done.stderr == "error: torch is not installed: pip install 'mtlc[compress]'\n"


def test_ctrl_c_in_a_real_training(tmp_path):
    job = toy_job.write(tmp_path, toy_job.JOB, "[train]\nepochs = 100000\nbatch_size = 8\n")
    command = [sys.executable, "-m", "mtlc.cli", "train", str(job), "--quiet", "--out", str(tmp_path / "w.safetensors")]
    # What runs in the background of a shell ignores interrupts, and so would what it starts.
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while not (tmp_path / "w.safetensors.training").exists():
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert stderr.strip() == "error: interrupted; the same command goes on from the last finished step"
    assert not (tmp_path / "w.safetensors").exists()


def test_plan(tmp_path):
    job = toy_job.write(tmp_path, toy_job.JOB, '[budget]\nmacs = "50%"\n', CALIBRATE, PRUNE)
    result = mtlc("plan", job, "--json")
    plan = json.loads(result.stdout)
    # stem 16·16·8·27, body 16·16·8·72, heads 16·16·8·(1 + 3)
    assert plan["cost"] == {"kind": "modelled", "macs": 2048 * (27 + 72 + 4), "params": 860}
    assert plan["budget"]["target"] == 2048 * (27 + 72 + 4) / 2
    # one channel left in both groups: 256·27 + 256·9 + 256·4
    assert plan["budget"]["least"] == 256 * (27 + 9 + 4)
    assert plan["budget"]["reachable"] is True
    assert {unit["name"]: unit["channels"] for unit in plan["units"]["prunable"]} == {"stem.0": 8, "body.0": 8}
    assert plan["passes"][0]["config"]["samples"] == 16
    assert plan["data"] == {"train": 32, "calibration": 8, "validation": 8}
    text = mtlc("plan", job, "--quiet")
    assert "within reach" in text.stdout
    assert text.stderr == ""
    assert list(tmp_path.iterdir()) == [job]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict]:
    """A job that was trained and run: its file and what `mtlc run --json` printed."""
    folder = tmp_path_factory.mktemp("finished")
    text = toy_job.JOB.replace("[tasks.depth]", 'weights = "w.safetensors"\n[tasks.depth]', 1)
    text = text.replace('"rmse"\n', '"rmse"\nmax_drop = "50%"\n')
    (folder / "single.json").write_text('{"depth": 0.05, "semseg": 90.0}')
    report = '[report]\nbaselines = "single.json"\npictures = 2\n'
    job = toy_job.write(folder, text, TRAIN, CALIBRATE, report)
    mtlc("train", job, "--quiet")
    result = mtlc("run", job, "--json", "--quiet")
    assert result.stderr == ""  # --quiet: nothing but an error
    return job, json.loads(result.stdout)


def test_train_writes_weights_and_how_it_went(finished):
    folder = finished[0].parent
    described = json.loads((folder / "w.train.json").read_text())
    assert described["training"]["steps"] == 8
    assert described["validation"]["metrics"].keys() == {"depth", "semseg"}
    assert (folder / "w.safetensors").exists()
    assert not (folder / "w.safetensors.training").exists()


def test_run_writes_everything(finished):
    job, results = finished
    out = job.parent / "job-out"
    assert {path.name for path in out.iterdir()} >= {
        "bundle", "reference-bundle", "program", "steps", "results.json", "report.html",
    }  # fmt: skip
    assert not (out / ".lock").exists()
    assert json.loads((out / "results.json").read_text()) == results
    assert results["missed"] == []
    text = (out / "report.html").read_text()
    assert "depth" in text
    assert "semseg" in text


def test_run_again_reads_the_steps(finished):
    job, first = finished
    result = mtlc("run", job, "--json")
    assert "calibrate: done before" in result.stderr
    again = json.loads(result.stdout)
    assert again["passes"] == first["passes"]


def test_report_renders_again(finished):
    out = finished[0].parent / "job-out"
    (out / "report.html").unlink()
    assert mtlc("report", out).stdout.strip() == str(out / "report.html")
    assert (out / "report.html").exists()


def test_inspect_checkpoint_bundle_and_job(finished):
    job, _ = finished
    out = job.parent / "job-out"
    checkpoint = json.loads(mtlc("inspect", out / "program", "--job", job, "--json").stdout)
    assert (checkpoint["is"], checkpoint["cost"]["macs"]) == ("checkpoint", 2048 * (27 + 72 + 4))
    assert [entry["name"] for entry in checkpoint["history"]] == ["calibrate"]
    assert json.loads(mtlc("inspect", out, "--json").stdout)["cost"] is None, "no job, no code to run"
    bundle = json.loads(mtlc("inspect", out / "bundle", "--json").stdout)
    assert (bundle["is"], set(bundle["tasks"])) == ("bundle", {"depth", "semseg"})
    assert json.loads(mtlc("inspect", job, "--json").stdout)["is"] == "job"
    for target in (out / "program", out / "bundle", job):
        assert "depth" in mtlc("inspect", target).stdout


def test_verify(finished):
    job, _ = finished
    out = job.parent / "job-out"
    assert "whole" in mtlc("verify", out / "bundle").stdout
    result = json.loads(mtlc("verify", out / "bundle", "--against", out, "--job", job, "--json").stdout)
    assert set(result["compared"]) == {"depth", "semseg"}
    other = mtlc("verify", out / "reference-bundle", "--against", out, "--job", job, code=4)
    assert "differs from the network" in other.stderr


def test_infer_writes_a_png_for_each_task(finished, tmp_path):
    out = finished[0].parent / "job-out"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(tmp_path / "in.jpg")
    result = mtlc("infer", out / "bundle", tmp_path / "in.jpg", "--out", tmp_path / "made", "--raw", "--json")
    assert json.loads(result.stdout)["tasks"].keys() == {"depth", "semseg"}
    assert {path.name for path in (tmp_path / "made").iterdir()} == {
        "depth.png", "semseg.png", "depth.npy", "semseg.npy",
    }  # fmt: skip
    assert Image.open(tmp_path / "made" / "depth.png").size == (30, 40)
    assert np.load(tmp_path / "made" / "semseg.npy").shape == (3, 16, 16)
    mtlc("infer", out / "bundle", tmp_path / "in.jpg", "--task", "depth", "--out", tmp_path / "one")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["depth.png"]


def test_infer_needs_the_base_install_only(finished, tmp_path):
    out = finished[0].parent / "job-out"
    Image.new("RGB", (16, 16)).save(tmp_path / "in.png")
    extra = [
        "torch",
        "onnx",
        "onnxscript",
        "torch_pruning",
        "safetensors",
        "scipy",
        "tqdm",
        "jinja2",
        "matplotlib",
        "nncf",
    ]
    code = f"import sys; sys.modules.update(dict.fromkeys({extra})); from mtlc.cli import main; main()"
    for arguments in (
        ["infer", out / "bundle", tmp_path / "in.png", "--out", tmp_path / "made"],
        ["inspect", out / "bundle"],
        ["verify", out / "bundle"],
        ["profile", out / "bundle", "--rounds", "2"],
        ["doctor"],
    ):
        done = python("-c", code, *arguments)
        assert (done.returncode, done.stderr) == (0, ""), (arguments, done.stderr)
    assert (tmp_path / "made" / "depth.png").exists()


def test_profile_measures_two_bundles_in_turns(finished):
    out = finished[0].parent / "job-out"
    arguments = ("profile", out / "bundle", "--against", out / "reference-bundle", "--rounds", "3", "--layers")
    result = json.loads(mtlc(*arguments, "--json").stdout)
    assert list(result["bundles"]) == [str(out / "reference-bundle"), str(out / "bundle")]
    assert list(result["speedup"]) == [str(out / "bundle")]
    for found in result["bundles"].values():
        assert 0 < found["p10_ms"] <= found["median_ms"] <= found["p90_ms"]
    assert "stem.0" in {layer["name"] for layer in result["layers"]}
    assert "median ms" in mtlc(*arguments).stdout


def test_a_missed_limit_is_3_with_everything_written(tmp_path):
    """Random weights have statistics that calibration changes: a limit of nothing cannot be kept."""
    text = toy_job.JOB.replace('"rmse"\n', '"rmse"\nmax_drop = 0.0\n')
    job = toy_job.write(tmp_path, text, CALIBRATE)
    result = mtlc("run", job, "--log-level", "error", code=3)
    assert "MISSED" in result.stdout
    assert re.fullmatch(r"error: task 'depth': rmse is .* on validation, its limit is .*\n", result.stderr)
    out = tmp_path / "job-out"
    assert json.loads((out / "results.json").read_text())["missed"]
    assert (out / "bundle" / "manifest.json").exists()


@pytest.mark.slow
def test_pruning_to_a_budget_and_an_archive(tmp_path):
    prune = PRUNE + "initial_thres = 50\nfinetune = {epochs = 1}\n"
    job = toy_job.write(tmp_path, toy_job.JOB, '[budget]\nmacs = "85%"\n', prune, "[export]\narchive = true\n")
    results = json.loads(mtlc("run", job, "--json", "--quiet").stdout)
    assert results["cost"]["after"]["macs"] <= results["budget"]["target"] == 0.85 * 2048 * (27 + 72 + 4)
    assert results["budget"]["met"]
    channels = {layer["name"]: (layer["channels_before"], layer["channels_after"]) for layer in results["layers"]}
    assert channels["stem.0"][1] + channels["body.0"][1] < channels["stem.0"][0] + channels["body.0"][0]
    assert channels["depth"] == (1, 1), "task outputs are never cut"
    assert results["passes"][0]["cost"]["macs"] == results["cost"]["after"]["macs"]
    assert "whole" in mtlc("verify", tmp_path / "job-out" / "bundle.mtlc").stdout


@pytest.mark.slow
def test_a_latency_budget_is_measured_once(tmp_path, monkeypatch):
    """A share of a latency is not measured anew by the run that goes on: finished steps would not fit it."""
    from mtlc.hw.measure import program_latency

    measured = iter([8.0, 9.0])
    monkeypatch.setattr(program_latency, "latency_ms", lambda program, device: next(measured))
    job = toy_job.write(tmp_path, toy_job.JOB, '[budget]\nlatency = "50%"\n', CALIBRATE)
    for _ in range(2):
        results = json.loads(CliRunner().invoke(main, ["run", str(job), "--json", "--quiet"]).stdout)
        assert results["budget"]["target"] == 4.0
    assert next(measured) == 9.0


def test_telemetry_is_off():
    code = (
        "import os, sys\nfrom mtlc.cli import main\n"
        "try:\n    main(['doctor'])\nexcept SystemExit:\n    pass\n"
        "print(os.environ['ORT_DISABLE_TELEMETRY'], sys.modules['openvino_telemetry'])\n"
    )
    assert python("-c", code).stdout.splitlines()[-1] == "1 None"
