"""The roofline: times worked out by hand, the fit that ships, devices that can and cannot be modelled, the verb."""

from __future__ import annotations

import json
from math import inf, isclose
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from testkit.costed_networks import program
from testkit.places import ROOT
from torch import nn

from mtlc.cli import main
from mtlc.errors import UserError
from mtlc.hw.cost.count import workload
from mtlc.hw.cost.workload import Workload
from mtlc.hw.devices.catalogue import device
from mtlc.hw.devices.device_model import device_model, modelled
from mtlc.hw.devices.efficiencies import device_class
from mtlc.hw.devices.roofline import KERNEL_KINDS, Efficiencies, KernelWork, Machine, kernels, timings, total_s
from mtlc.results.latency import LatencyResult
from mtlc.workflows.device_times import compared, costed_devices

HALF = Efficiencies(dict.fromkeys(KERNEL_KINDS, 0.5), 0.25, 1e-6, 1e-5)
CLASSES = ("dpu", "edge-tpu", "hailo", "jetson")


class Convolutions(nn.Module):
    """(N, 8, 6, 6) → (N, 5): one operator of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial, self.norm = nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.grouped, self.pointwise = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 4, 1)
        self.linear = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pointwise(self.grouped(torch.relu(self.norm(self.spatial(x)))))
        return self.linear((x + 1).mean((2, 3)))


def convolutions() -> Workload:
    return workload(program(Convolutions(), torch.zeros(1, 8, 6, 6)))


# ---- the formula --------------------------------------------------------------------------------------------------


def test_kinds_are_told_apart_and_what_is_fused_takes_no_time() -> None:
    found = {kernel.name: kernel for kernel in kernels(convolutions())}
    assert {name: found[name].kind for name in ("spatial", "grouped", "pointwise", "linear")} == {
        "spatial": "spatial", "grouped": "grouped", "pointwise": "pointwise", "linear": "matmul",
    }  # fmt: skip
    assert "norm" not in found
    assert found["spatial"].macs == 36 * 16 * 8 * 9
    assert (found["spatial"].weights, found["spatial"].activations) == (16 * 8 * 9 + 16, 36 * (8 + 16))
    assert found[""].kind == "vector"


def test_a_time_is_that_of_the_slower_of_arithmetic_and_memory_and_a_launch() -> None:
    machine = Machine(peak=1e9, bandwidth=1e9)
    many, moved = KernelWork("many", "spatial", 1_000_000, 0, 1000), KernelWork("moved", "matmul", 1000, 500_000, 0)
    small, added = KernelWork("small", "matmul", 10, 1, 1), KernelWork("added", "vector", 0, 0, 1000)
    rows = timings((many, moved, small, added), machine, HALF, "fp16")
    assert [row.bound for row in rows] == ["compute", "memory", "launch", "memory"]
    # 10⁶ MACs at half of 10⁹; a million bytes at a quarter of 10⁹; a launch of 1 µs, which an addition does not pay.
    assert [row.seconds for row in rows] == pytest.approx([2e-3 + 1e-6, 4e-3 + 1e-6, 1e-6 + 2e-8, 8e-6])
    assert total_s(rows, HALF) == pytest.approx(6e-3 + 3e-6 + 2e-8 + 8e-6 + 1e-5)
    assert (rows[0].intensity, rows[0].rate) == (500, pytest.approx(1e6 / rows[0].seconds))


def test_a_lower_precision_moves_fewer_bytes() -> None:
    kernel = KernelWork("moved", "matmul", 1, 1000, 1000)
    moved = {p: timings((kernel,), Machine(1e12, 1e6), HALF, p)[0].bytes for p in ("int8", "fp16", "bf16", "fp32")}
    assert moved == {"int8": 2000, "fp16": 4000, "bf16": 4000, "fp32": 8000}


def test_weights_that_do_not_fit_on_the_chip_are_read_in_every_inference() -> None:
    layers = [KernelWork(str(index), "matmul", 1, 600, 50) for index in range(3)]
    assert [row.bytes for row in timings(layers, Machine(1e9, 1.0, 1000), HALF, "int8")] == [0, 200, 600]
    kept = timings(layers, Machine(1e9, 1.0, inf), HALF, "int8")
    assert [row.bytes for row in kept] == [0, 0, 0]
    assert kept[0].intensity == inf


# ---- the fit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_what_was_fitted_beats_the_peak_alone_on_networks_held_out(name: str) -> None:
    found = device_class(name)
    assert set(found.fitted.compute) == set(KERNEL_KINDS)
    assert all(0 < share <= 1 for share in found.fitted.compute.values())
    assert found.fitted.launch_s > 0
    assert found.errors["held_out"]["rows"] >= 4
    assert found.errors["held_out"]["median"] < found.errors["peak_alone_held_out"]["median"] / 2
    assert found.sources


def test_the_published_times_are_reproduced_by_the_efficiencies_that_ship() -> None:
    results = ROOT / "benchmarks" / "results"
    networks = json.loads((results / "roofline_workloads.json").read_text())["networks"]
    rows = json.loads((results / "roofline_fit.json").read_text())["classes"]["dpu"]["rows"]
    model = device_model("zcu104")
    for row in (row for row in rows if row["board"] == "zcu104"):
        found = [KernelWork("", *kernel) for kernel in networks[row["network"]]["kernels"]]
        total = total_s(timings(found, model.machine, model.of.fitted, "int8"), model.of.fitted)
        assert 1e3 * total == pytest.approx(row["predicted_ms"], rel=2e-3)
    off = [abs(row["predicted_ms"] / row["published_ms"] - 1) for row in rows if row["held_out"]]
    assert np.median(off) == pytest.approx(model.of.errors["held_out"]["median"], abs=1e-3)
    assert {row["network"] for row in rows if row["held_out"]}.isdisjoint(
        {row["network"] for row in rows if not row["held_out"]}
    )


def test_a_board_of_the_fit_has_the_error_on_networks_and_another_that_on_boards() -> None:
    jetson = device_class("jetson")
    seen, unseen = jetson.error("jetson-agx-orin"), jetson.error("jetson-orin-nano")
    assert seen is not None
    assert unseen is not None
    assert (seen.held_out, unseen.held_out) == ("networks", "boards")
    assert unseen.median > seen.median
    assert device_class("hailo").error("hailo-8l") is None


# ---- devices --------------------------------------------------------------------------------------------------------


def test_one_image_has_one_engine_of_the_device() -> None:
    assert device("zcu102").peak("int8") == 3 * device_model("zcu102").machine.peak
    assert device_model("zcu102").machine.bandwidth == pytest.approx(17.06e9)
    assert device_model("coral").machine.on_chip == 8 * 2**20
    assert device_model("jetson-orin-nano").machine.peak == 5e12


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("local-cpu", "is this machine: its times are measured"),
        (
            "raspberry-pi-5",
            "peak rate is not known, and no published .* run mtlc calibrate and mtlc profile on the board",
        ),
        ("h100", "no published times of such devices were fitted"),
        ("kv260", r"\[memory.bandwidth\] is not known: give it in a device file"),
        ("zcu14", "did you mean 'zcu104'"),
    ],
)
def test_a_device_that_lacks_something_is_refused_with_what_it_lacks(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        device_model(name)


def test_a_class_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('title = "Mine"\nkind = "npu"\nroofline = "dpus"\n')
    with pytest.raises(UserError, match=r"roofline = 'dpus': no efficiencies .*did you mean 'dpu'"):
        device_model(tmp_path / "mine.toml")


def test_the_parts_of_a_modelled_time_add_up() -> None:
    found = modelled(device_model("zcu104"), [convolutions()])
    assert sum(layer["ms"] for layer in found["layers"]) + found["run_ms"] == pytest.approx(found["ms"])
    assert sum(found["bounds"].values()) == pytest.approx(1)
    assert [layer["name"] for layer in found["layers"]][:3] == ["spatial", "grouped", "pointwise"]
    assert found["outside_fit"] == "smaller"
    assert any("smaller than any of the fit" in note for note in found["notes"])
    twice = modelled(device_model("zcu104"), [convolutions()] * 2)
    assert twice["ms"] - found["ms"] == pytest.approx(found["ms"] - found["run_ms"])


def test_a_comparison_measures_here_and_models_elsewhere() -> None:
    latency = LatencyResult.model_validate({
        "threads": 1, "device": {"cpu": "A CPU"}, "speedup": 2.0, "before": {"median_ms": 4.0},
        "after": {"median_ms": 2.0},
        "layers": [{"name": "spatial", "before_ms": 3.0, "after_ms": 1.5}, {"name": "(runtime)", "after_ms": 0.5}],
    })  # fmt: skip
    here, there = compared(costed_devices(["local-cpu", "coral"]), (convolutions(), convolutions()), latency)
    assert (here.kind, there.kind) == ("measured", "modelled")
    assert (here.before_ms, here.after_ms, here.title) == (4.0, 2.0, "A CPU")
    assert here.layers[0].rate == pytest.approx(41472 / 1.5e-3)
    assert here.bounds is None
    assert "mtlc calibrate" in here.notes[0]
    assert isclose(there.speedup, 1)
    assert compared(costed_devices(["local-cpu"]), (convolutions(), convolutions()), None) == []


# ---- the verb -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mtlc.export.bundle.write_bundle import export_bundle

    path = tmp_path_factory.mktemp("roofline") / "bundle"
    torch.manual_seed(0)
    made = program(Convolutions().eval(), torch.zeros(2, 8, 6, 6))
    export_bundle(made, path, samples={"input0": torch.randn(3, 8, 6, 6)})
    return path


def mtlc(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["profile", *(str(arg) for arg in args)])
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


def test_a_profile_of_devices_says_what_is_modelled_and_how_far_it_is_off(bundle: Path) -> None:
    text = mtlc(bundle, "--device", "zcu104", "--device", "jetson-orin-nano")
    assert "modelled on AMD Zynq UltraScale+ ZCU104 (XCZU7EV), int8, one sample" in text
    assert "at p90, on networks held out)" in text
    assert "at p90, on boards held out)" in text
    assert "measured" not in text
    found = json.loads(mtlc(bundle, "--device", "zcu104", "--json"))
    whole = modelled(device_model("zcu104"), [convolutions()])
    assert "bundles" not in found
    # The same operators from the file as from the program, but for the norm that is folded into a convolution.
    assert found["devices"][0]["after_ms"] == pytest.approx(whole["ms"], rel=0.02)


def test_a_local_device_beside_it_is_measured(bundle: Path) -> None:
    found = json.loads(mtlc(bundle, "--device", "local-cpu", "--device", "coral", "--rounds", 2, "--json"))
    assert found["bundles"][str(bundle)]["median_ms"] > 0
    assert [entry["device"] for entry in found["devices"]] == ["coral"]


def test_bad_input_of_the_verb_is_one_line(bundle: Path) -> None:
    for args, words in (
        (("--device", "zcu103"), "did you mean 'zcu10"),
        (("--device", "raspberry-pi-5"), "run mtlc calibrate"),
        (("--device", "zcu104", "--batch", "4"), "modelled times are of one sample"),
    ):
        line = mtlc(bundle, *args, code=2)
        assert words in line
        assert len(line.strip().splitlines()) == 1
