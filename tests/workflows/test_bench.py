"""`mtlc bench`: rows for bundles, backends and numbers of threads, measured in turns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from testkit import toy_job
from torch import nn

from mtlc.cli import main
from mtlc.errors import BundleError
from mtlc.export.bundle.write_bundle import export_bundle
from mtlc.hw.measure.in_turns import Setting, measure_settings
from mtlc.program.program import ModelSource, Program
from mtlc.runtime import Session
from mtlc.tasks.task import TaskSpec
from mtlc.workflows import bench as bench_module
from mtlc.workflows.bench import bench

FAST = ("--rounds", "4")
TASKS = (TaskSpec("depth", "l1", "rmse"), TaskSpec("semseg", "cross_entropy", "miou"))


def mtlc(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result


def export(network: nn.Module, path: Path, size: int = 16, tasks: tuple[TaskSpec, ...] = TASKS) -> Path:
    samples = {"image": torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))}
    program = Program(network.eval(), tasks, {"image": samples["image"][:2]}, ModelSource("testkit.toy_job:net"))
    export_bundle(program, path, samples=samples)
    return path


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("benched")
    torch.manual_seed(0)
    return {name: export(toy_job.net(width), folder / name) for name, width in (("wide", 160), ("narrow", 8))}


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What fresh processes would be asked, a row each. They take seconds; `test_memory_and_start.py` looks at them."""
    asked: list[tuple[Any, ...]] = []

    def footprint(*given: Any) -> dict[str, Any]:
        asked.append(given)
        return {"added_bytes": 3 * 2**20, "cold_ms": 12.0}

    monkeypatch.setattr(bench_module, "footprint", footprint)
    return asked


def test_a_row_for_every_combination_with_its_own_setting(bundles, no_processes):
    paths = list(bundles.values())
    found = bench(paths, backends=("onnxruntime", "openvino"), threads=(1, 2), batch=3, rounds=4).to_dict()
    rows = found["rows"]
    keys = [(row["bundle"], row["backend"], row["threads"]) for row in rows]
    assert keys == [(str(p), b, t) for p in paths for b in ("onnxruntime", "openvino") for t in (1, 2)]
    assert (found["kind"], found["batch"], found["rounds"], found["tasks"]) == ("measured", 3, 4, ["depth", "semseg"])
    for row, (_, backend, threads), asked in zip(rows, keys, no_processes, strict=True):
        assert row["version"][0].isdigit()
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["throughput"] == pytest.approx(3000 / row["mean_ms"])
        assert row["precision"] == "fp32"
        setting, inputs, tasks = asked
        assert setting == Setting(Path(row["bundle"]), backend, threads)
        assert tasks == ("depth", "semseg")
        assert inputs["image"].shape == (3, 3, 16, 16)
    assert rows[0]["faster"] is None
    assert all(0 < row["faster"]["p10"] <= row["faster"]["median"] <= row["faster"]["p90"] for row in rows[1:])


def test_the_network_of_fewer_channels_is_faster(bundles, no_processes):
    wide, narrow = bench(list(bundles.values()), batch=4, rounds=10).to_dict()["rows"]
    # Some 300 times the MACs: no load of the machine hides that.
    assert narrow["faster"]["median"] > 2
    assert narrow["throughput"] > wide["throughput"]
    assert narrow["bytes"] < wide["bytes"]


def test_settings_are_what_sessions_are_opened_with(bundles, monkeypatch):
    opened = []

    class Watched(Session):
        def __init__(self, path, backend="auto", threads=None, batch=None) -> None:
            opened.append((str(path), backend, threads, batch))
            super().__init__(path, backend, threads, batch=batch)

        def run(self, x, tasks=None):
            opened.append(self.backend)
            return super().run(x, tasks)

    monkeypatch.setattr("mtlc.hw.measure.in_turns.Session", Watched)
    path = bundles["narrow"]
    settings = {"a": Setting(path, "openvino", 2, batch=1), "b": Setting(path)}
    found = measure_settings(settings, np.zeros((1, 3, 16, 16), np.float32), "depth", rounds=3, warmup=1)
    assert opened[:2] == [(str(path), "openvino", 2, 1), (str(path), "auto", 1, None)]
    # One call each to warm up, then in turns: an untimed and a timed call each.
    assert (
        opened[2:]
        == ["openvino", "onnxruntime", *["openvino"] * 2, *["onnxruntime"] * 2]
        + (["openvino"] * 2 + ["onnxruntime"] * 2) * 2
    )
    assert set(found["speedup"]) == {"b"}


def test_sessions_are_told_a_fixed_batch(bundles, no_processes):
    found = bench([bundles["narrow"]], backends=("openvino",), batch=2, rounds=4, fixed_batch=True).to_dict()
    assert found["fixed_batch"] is True
    assert no_processes[0][0].batch == 2


def test_the_verb(bundles):
    arguments = ("bench", bundles["wide"], bundles["narrow"], "--task", "depth", *FAST)
    found = json.loads(mtlc(*arguments, "--json").stdout)
    assert found["tasks"] == ["depth"]
    for row in found["rows"]:
        memory = row["memory"]
        assert memory["peak_bytes"] > memory["baseline_bytes"] > 10 * 2**20
        assert 0 < memory["cold_min_ms"] <= memory["cold_ms"]
    text = mtlc(*arguments).stdout
    assert "batch 1, 4 rounds in turns" in text
    assert len(text.splitlines()) == 5
    assert "samples/s" in text
    assert text.rstrip().endswith(")")


def test_what_cannot_be_measured_is_one_line(bundles, tmp_path, monkeypatch):
    wide, narrow = bundles.values()
    assert "no backend 'onnxruntim' is installed" in mtlc("bench", wide, "--backend", "onnxruntim", code=5).stderr
    assert f"{wide}: is given twice" in mtlc("bench", wide, wide, code=2).stderr
    assert f"{wide}/../wide: is given twice" in mtlc("bench", wide, f"{wide}/../wide", code=2).stderr
    said = mtlc("bench", wide, "--task", "depht", code=2).stderr
    assert said == f"error: {wide}: no task 'depht'; did you mean 'depth'?\n"
    large = export(toy_job.net(8), tmp_path / "large", size=24)
    assert f"{large}: takes other inputs than {wide}" in mtlc("bench", wide, large, code=2).stderr
    other = export(
        toy_job.net(8), tmp_path / "other", tasks=(TASKS[0], replace(TASKS[1], name="classes", output="semseg"))
    )
    assert "say with --task what to run" in mtlc("bench", wide, other, code=2).stderr

    class Refuses:
        name = "refuses"

        def load(self, file, threads, profile):
            raise RuntimeError("no such operator")

    from mtlc.runtime import session
    from mtlc.runtime.backends import find_backend

    def find(name):
        return Refuses() if name == "refuses" else find_backend.find_backend(name)

    monkeypatch.setattr(session, "find_backend", find)
    monkeypatch.setattr("mtlc.hw.measure.in_turns.find_backend", find)
    with pytest.raises(
        BundleError, match=r"narrow, refuses, 1 thread: .*refuses cannot load program .*no such operator"
    ):
        bench([narrow], backends=("onnxruntime", "refuses"))
