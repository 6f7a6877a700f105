"""Calibration: what is measured of this machine, and the file that it becomes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mtlc.cli import main
from mtlc.hw.devices.catalogue import device, local_device
from mtlc.hw.devices.device_file import read_device_file
from mtlc.hw.measure import machine_rates


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small matrices and a small cache, so that a calibration takes no time; and a user's folder of our own."""
    monkeypatch.setattr(machine_rates, "SIZE", 64)
    monkeypatch.setattr(machine_rates, "_LEAST_TRIAD_BYTES", 2**20)
    monkeypatch.setattr(machine_rates, "last_level_cache", lambda: 2**20)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "mtlc" / "devices"


def mtlc(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result


def calibrated(*args: object) -> dict:
    return json.loads(mtlc("calibrate", "--seconds", "0.1", "--json", "--quiet", *args).stdout)


def test_the_file_counts_before_the_one_of_mtlc(small: Path) -> None:
    assert device("local-cpu").figures == {}
    result = calibrated("--threads", "1")
    assert result["path"] == str(small / "local-cpu.toml")
    assert [path.name for path in small.iterdir()] == ["local-cpu.toml"]
    found = local_device("local-cpu")
    assert (found.local, found.backend, found.kind) == (True, "onnxruntime", "cpu")
    assert found.as_json() == {**result["device"], "measured_on": dict(found.measured_on)}
    for key in ("peak.int8.dense", "peak.fp32.dense", "memory.bandwidth", "launch_floor", "cores", "memory.capacity"):
        assert found.figures[key].confidence == "measured"
    for key in ("peak.int8.dense", "peak.fp32.dense"):
        assert found.figures[key] == found.figures[f"threads.1.{key}"]
        assert found.figures[key].spread is not None
    assert found.bandwidth() == found.bandwidth(threads=1)
    assert "4 MiB against 1 MiB of last-level cache, 1 thread, median of" in found.figures["memory.bandwidth"].source
    assert {"date", "cpu", "onnxruntime", "load_1min"} <= set(found.measured_on)


def test_precisions_that_are_not_computed_in_are_not_measured(small: Path) -> None:
    result = calibrated("--threads", "1")
    figures = result["device"]["figures"]
    for precision in ("fp16", "bf16"):
        # Which it is depends on the processor, but it is one of the two.
        assert (f"peak.{precision}.dense" in figures) != (f"peak.{precision}" in result["missing"])
    for key, why in result["missing"].items():
        assert f"{key} ({why})" in result["device"]["notes"]
        assert "on this CPU" in why


def test_a_cast_product_is_found_out(tmp_path: Path) -> None:
    """A graph that says fp16 and computes in fp32 is what onnxruntime makes where it has no half-precision kernel."""
    import numpy as np

    file = tmp_path / "product.onnx"
    file.write_bytes(machine_rates._product_model("fp32", 8))
    feeds = {"x": np.ones((8, 8), np.float32)}
    machine_rates._check_kernel(file, "fp32", feeds)
    with pytest.raises(machine_rates._NotMeasured, match=r"peak.fp16: onnxruntime \S+ computes it in fp32 on this CPU"):
        machine_rates._check_kernel(file, "fp16", feeds)


def test_rates_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_rates, "_seconds", lambda call: 0.002)
    rates = machine_rates.measure_rates([1], 0, size=100)
    assert rates.figures["threads.1.peak.fp32.dense"].value == 0.5  # 100³ in 2 ms: 0.5 GMAC/s
    # 4 MiB in whole blocks of 3 × 128 KiB are 11 of them
    assert rates.figures["threads.1.bandwidth"].value == pytest.approx(11 * 3 * 2**17 / 0.002 / 1e9, rel=1e-4)
    assert rates.missing["launch_floor"] == "lost in the noise of a busy machine"  # the same time for 1 and 201 nodes
    assert all(figure.spread == 0 for figure in rates.figures.values())


def test_the_triad_is_right_and_touches_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    full = machine_rates.np.full
    monkeypatch.setattr(machine_rates.np, "full", lambda *args: made.append(full(*args)) or made[-1])
    with machine_rates._triads([1, 3]) as probes:
        assert [probe.key for probe in probes] == ["threads.1.bandwidth", "threads.3.bandwidth"]
        for probe in probes:
            made[0][:] = 0
            assert probe.turn() > 0
            assert (made[0] == 3 * 1 + 2).all()
    assert sum(array.nbytes for array in made) >= 4 * 2**20


def test_a_bandwidth_that_memory_is_too_small_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_rates, "free_memory", lambda: 7 * 2**20)
    rates = machine_rates.measure_rates([1], 0)
    assert "threads.1.bandwidth" not in rates.figures
    assert rates.missing["memory.bandwidth"].startswith("arrays larger than the caches take 4 MiB")


def test_text_says_what_was_found_and_what_to_doubt(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtlc.workflows import calibrate

    monkeypatch.setattr(calibrate, "this_machine", lambda: {"name": "x", "cpu": "A CPU", "cores": 1, "load_1min": 3.5})
    result = mtlc("calibrate", "--seconds", "0.1")
    assert "local-cpu: A CPU" in result.stdout
    assert "doubt: the machine was busy: a load of 3.5 on 1 cores before the start" in result.stdout
    assert result.stdout.splitlines()[-1] == f"written: {small / 'local-cpu.toml'}"
    assert "leave the machine alone" in result.stderr


def test_out_and_recalibration(tmp_path: Path, small: Path) -> None:
    out = tmp_path / "mine.toml"
    calibrated("--threads", "1", "--out", out)
    first = out.read_text()
    assert read_device_file(out).name == "mine"
    calibrated("--threads", "1", "--out", out)
    assert out.read_text() != first
    assert not small.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threads", "1000"], "--threads 1000: this process may use"),
        (["--threads", "0"], "Invalid value for '--threads'"),
        (["--seconds", "0"], "Invalid value for '--seconds'"),
        (["--out", "mine.json"], "--out mine.json: a device file ends in .toml"),
        (["--out", "job.toml"], "job.toml: exists and is no calibration of mtlc"),
    ],
)
def test_wrong_usage_is_found_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    def measured(*args: object, **kwargs: object) -> None:
        raise AssertionError

    monkeypatch.setattr("mtlc.workflows.calibrate.measure_rates", measured)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.toml").write_text("schema = 1\n")
    result = mtlc("calibrate", *arguments, code=2)
    assert result.stderr.startswith(f"error: {words}")
    assert len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["job.toml"]
    assert (tmp_path / "job.toml").read_text() == "schema = 1\n"


def test_a_calibration_that_fails_leaves_nothing(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(machine_rates, "_product_rate", broken)
    mtlc("calibrate", "--seconds", "0.1", code=130)
    assert not small.exists()


def test_without_onnx_it_says_how_to_get_it(tmp_path: Path) -> None:
    code = "import sys; sys.modules['onnx'] = None; from mtlc.cli import main; main()"
    command = [sys.executable, "-c", code, "calibrate", "--out", str(tmp_path / "mine.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert done.stderr.splitlines()[-1] == "error: onnx is not installed: pip install 'mtlc[onnx]'"
    assert list(tmp_path.iterdir()) == []


def test_caches_and_memory_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    cache, free = machine_rates.last_level_cache(), machine_rates.free_memory()
    assert cache is None or 2**15 <= cache < 2**34
    assert free is None or free > 2**20
