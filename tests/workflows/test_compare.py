"""`mtlc compare`, `mtlc profile --baseline`: a run of a small job against its original and against a stranger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from testkit import toy_job
from torch import Tensor, nn

from mtlc.cli import main
from mtlc.export.bundle.write_bundle import export_bundle
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec

PRUNE = '[budget]\nmacs = "60%"\n[[passes]]\nname = "prune"\nround_to = 1\nrounds = 1\n'
FAST = ("--rounds", "3")


def mtlc(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result


class Stranger(nn.Module):
    """Another input size, and one of the tasks of the toy."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 1, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"depth": self.one(image)}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    job = toy_job.write(folder, toy_job.JOB, PRUNE, '[report]\ndevices = ["local-cpu"]\n')
    mtlc("run", job, "--quiet")
    return folder / "job-out"


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stranger") / "bundle"
    samples = {"image": torch.rand(3, 3, 8, 8)}
    program = Program(
        Stranger(), (TaskSpec("depth", "l1", "rmse"),), {"image": samples["image"][:2]}, ModelSource("t:s")
    )
    export_bundle(program, path, samples=samples)
    return path


@pytest.fixture(scope="module")
def found(out: Path) -> dict[str, Any]:
    page = out / "compared.html"
    return json.loads(mtlc("compare", out / "reference-bundle", out, *FAST, "--html", page, "--json").stdout)


def test_costs_from_the_files_are_those_of_the_run(out: Path, found: dict[str, Any]) -> None:
    results = json.loads((out / "results.json").read_text())
    # stem 256·8·27, body 256·8·72, heads 256·8·(1 + 3)
    assert found["cost"]["A"]["macs"] == 2048 * (27 + 72 + 4)
    assert found["cost"]["B"]["macs"] == results["cost"]["after"]["macs"] < found["cost"]["A"]["macs"]
    for label, side in (("A", "before"), ("B", "after")):
        assert found["cost"][label]["kind"] == "modelled"
        assert found["cost"][label]["bytes"] == results["cost"][side]["bundle_bytes"]
    assert found["notes"] == []


def test_layers_have_macs_and_times_of_both(found: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in found["layers"]}
    assert rows["stem.0"]["A"]["macs"] == 2048 * 27
    assert rows["body.0"]["B"]["macs"] < rows["body.0"]["A"]["macs"] == 2048 * 72
    assert all(rows[name][label]["ms"] > 0 for name in ("stem.0", "body.0") for label in "AB")


def test_measured_in_turns_and_in_fresh_processes(found: dict[str, Any]) -> None:
    latency = found["latency"]
    assert latency["in_turns"] is True
    assert set(latency["speedup"]) == {"B"}
    assert (latency["instructions_why"] is None) == (latency["bundles"]["A"]["instructions"] is not None)
    for label in "AB":
        assert latency["bundles"][label]["median_ms"] > 0
        assert found["memory"][label]["peak_bytes"] > found["memory"][label]["baseline_bytes"]


def test_metrics_come_from_the_run_that_is_given(out: Path, found: dict[str, Any]) -> None:
    task = json.loads((out / "results.json").read_text())["tasks"]["depth"]
    depth = found["tasks"]["depth"]
    assert (depth["B"]["before"], depth["B"]["after"]) == (task["before"], task["after"])
    assert depth["A"]["after"] is None
    assert depth["change"] is None
    assert found["B"]["passes"][0]["name"] == "prune"


def test_a_bundle_agrees_with_itself_and_not_with_the_pruned_one(out: Path, found: dict[str, Any]) -> None:
    assert found["agreement"]["depth"]["max_rel"] > 1e-3
    again = json.loads(mtlc("compare", out, out, *FAST, "--json", "--job", out.parent / "job.toml").stdout)
    assert {one["max_rel"] for one in again["agreement"].values()} == {0.0}
    assert again["agreement_inputs"] == str(out.parent / "job.toml")
    assert again["differs"] == []
    assert again["tasks"]["depth"]["change"] == 0.0


def test_the_page_is_whole(out: Path, found: dict[str, Any]) -> None:
    text = (out / "compared.html").read_text()
    for section in ("cost", "tasks", "agreement", "layers", "provenance"):
        assert f'<section id="{section}"' in text
    assert "None" not in text
    assert text.count("<script") == 1  # the page's own
    assert (out / "compared.html").stat().st_size < 2_000_000


def test_what_does_not_compare_is_said(out: Path, stranger: Path) -> None:
    found = json.loads(mtlc("compare", out, stranger, *FAST, "--json").stdout)
    assert found["agreement"] is None
    assert found["latency"]["in_turns"] is False
    assert found["latency"]["speedup"] == {}
    assert any("their inputs differ" in note for note in found["notes"])
    assert any(note.endswith("both have: depth") for note in found["notes"])
    assert found["cost"]["B"]["macs"] == 8 * 8 * 3
    assert {row["what"] for row in found["differs"]} >= {"input image", "task semseg", "passes"}
    text = mtlc("compare", out, stranger, *FAST).stdout
    assert "note: their inputs differ" in text
    assert "absent" in text


def test_neither_bundle_nor_run(out: Path, tmp_path: Path) -> None:
    assert "no such bundle" in mtlc("compare", out, tmp_path / "none", code=2).stderr
    (tmp_path / "results.json").write_text('{"tasks": {}}')
    assert "names no bundle" in mtlc("compare", tmp_path, out, code=2).stderr
    (tmp_path / "bundle").symlink_to(out / "bundle")
    (tmp_path / "results.json").write_text('{"tasks": {"depth": {}}, "bundles": {"after": {"path": "bundle"}}}')
    assert "not what `mtlc run` wrote" in mtlc("compare", tmp_path, out, code=2).stderr


def test_the_report_of_the_run_has_memory_and_changes(out: Path) -> None:
    latency = json.loads((out / "results.json").read_text())["latency"]
    assert latency["after"]["memory"]["peak_bytes"] > latency["after"]["memory"]["baseline_bytes"]
    assert "instructions" in latency["after"]
    text = (out / "report.html").read_text()
    assert "cold start and first call" in text
    assert '<section id="changes">' in text


# ---- profiles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_operators_and_layers_of_a_backend(out: Path, backend: str) -> None:
    pytest.importorskip(backend)
    arguments = ("profile", out / "bundle", *FAST, "--backend", backend, "--layers", "--operators")
    found = json.loads(mtlc(*arguments, "--json").stdout)
    assert found["backend"]["name"] == backend
    assert {"stem.0", "body.0"} <= {layer["name"] for layer in found["layers"] if layer["kernel"]}
    assert sum(one["count"] for one in found["operators"] if one["kind"] == "Conv") == 4
    text = mtlc(*arguments).stdout
    assert "of the profiled time belongs to a layer" in text
    assert "before opening MiB" in text


def test_growth_over_a_baseline_is_3(out: Path, tmp_path: Path) -> None:
    earlier = json.loads(mtlc("profile", out / "bundle", *FAST, "--json").stdout)
    path = tmp_path / "earlier.json"
    path.write_text(json.dumps(earlier))
    generous = mtlc("profile", out / "bundle", *FAST, "--baseline", path, "--max-growth", "10000%")
    assert "10000 % allowed" in generous.stdout
    one = earlier["bundles"][earlier["bundle"]]
    one["median_ms"] /= 1000
    if one["instructions"] is not None:
        one["instructions"]["median"] /= 1000
    path.write_text(json.dumps(earlier))
    result = mtlc("profile", out / "bundle", *FAST, "--baseline", path, code=3)
    assert "allowed" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    refused = mtlc("profile", out / "bundle", *FAST, "--baseline", path, "--batch", "2", code=2)
    assert "batch = 1, this one with 2" in refused.stderr
    assert "--max-growth needs --baseline" in mtlc("profile", out / "bundle", "--max-growth", "1%", code=2).stderr
