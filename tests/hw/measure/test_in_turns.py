"""Measured latency, layer profiles and devices, on bundles that the exporter made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from testkit.costed_networks import program, randomized
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.entry_points import Addition
from mtlc.errors import UserError
from mtlc.export.bundle.write_bundle import export_bundle
from mtlc.hw.cost.count import workload
from mtlc.hw.devices.catalogue import Device, device, devices
from mtlc.hw.measure import in_turns
from mtlc.hw.measure.in_turns import Effort, Setting, measure, measure_settings, summary
from mtlc.hw.measure.layer_profile import profile_layers
from mtlc.hw.measure.program_latency import latency_ms
from mtlc.hw.measure.this_machine import this_machine
from mtlc.program.program import Program
from mtlc.zoo.resnet import BasicBlock, ConvBN

SAMPLES = {"input0": torch.rand(3, 3, 64, 64)}
ONE = np.ascontiguousarray(SAMPLES["input0"][:1].numpy())


class TwoHeads(nn.Module):
    """A stem and a residual block that two 1×1 heads share: the fusions that onnxruntime does, in a small network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.block = ConvBN(3, width, 3, 2), BasicBlock(width, 2 * width, 1)
        self.depth, self.edge = nn.Conv2d(2 * width, 1, 1), nn.Conv2d(2 * width, 1, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.block(F.relu(self.stem(image)))
        return {"depth": self.depth(x), "edge": F.interpolate(self.edge(x), scale_factor=2.0)}


def network(width: int) -> Program:
    return program(randomized(TwoHeads(width)), SAMPLES["input0"], outputs=("depth", "edge"))


BACKENDS = pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    made = {label: folder / label for label in ("wide", "narrow")}
    for label, width in (("wide", 48), ("narrow", 8)):
        export_bundle(network(width), made[label], samples=SAMPLES)
    return made


def test_interleaved_latency_of_two_bundles(bundles: dict[str, Path]) -> None:
    result = measure(bundles, ONE, rounds=15, warmup=2)
    assert (result["kind"], result["threads"], result["batch"], result["rounds"]) == ("measured", 1, 1, 15)
    wide, narrow = result["bundles"]["wide"], result["bundles"]["narrow"]
    for timing in (wide, narrow):
        assert 0 < timing["min_ms"] <= timing["p10_ms"] <= timing["median_ms"] <= timing["p90_ms"]
        assert timing["cpu_median_ms"] > 0
    # Some 30 times the MACs: no load of the machine hides that.
    assert wide["median_ms"] > narrow["median_ms"]
    assert result["speedup"]["narrow"]["median"] > 1
    assert result["device"]["cpu"]


def test_only_the_asked_tasks_are_timed(bundles: dict[str, Path]) -> None:
    assert measure({"one": bundles["narrow"]}, ONE, tasks="depth", rounds=2)["tasks"] == ["depth"]
    with pytest.raises(UserError, match="depht"):
        measure({"one": bundles["narrow"]}, ONE, tasks=["depht"], rounds=2)


def test_bad_requests_are_refused(bundles: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="at least one bundle"):
        measure({}, ONE)
    with pytest.raises(UserError, match="rounds = 1"):
        measure(bundles, ONE, rounds=1)


def test_summary_by_hand() -> None:
    assert summary([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(
        {
            "median_ms": 3.0,
            "p10_ms": 1.4,
            "p90_ms": 4.6,
            "p99_ms": 4.96,
            "min_ms": 1.0,
            "mean_ms": 3.0,
            "spread": 3.2 / 3,
        }
    )


@BACKENDS
def test_every_convolution_gets_its_own_time(bundles: dict[str, Path], backend: str) -> None:
    pytest.importorskip(backend)
    profile = profile_layers(bundles["wide"], ONE, rounds=8, warmup=2, backend=backend)
    assert profile["backend"] == backend
    timed = {layer["name"]: layer["ms"] for layer in profile["layers"]}
    convolutions = {name for name, layer in workload(network(48)).by_layer().items() if layer.macs}
    assert convolutions - set(timed) == set()
    assert all(timed[name] > 0 for name in convolutions)
    assert profile["attributed"] > 0.5
    assert sum(layer["share"] for layer in profile["layers"]) == pytest.approx(1)
    assert profile["total_ms"] == pytest.approx(sum(timed.values()))
    heaviest = max(convolutions, key=lambda name: workload(network(48)).by_layer()[name].macs)
    assert timed[heaviest] > timed["depth"]
    operators = {operator["kind"]: operator for operator in profile["operators"]}
    assert sum(o["count"] for o in profile["operators"] if o["kind"] == "Conv") == len(convolutions)
    assert operators["Conv"]["kernel"]
    assert sum(operator["share"] for operator in profile["operators"]) == pytest.approx(1)


def test_a_profile_of_one_task_has_no_layer_of_the_other(bundles: dict[str, Path]) -> None:
    names = [layer["name"] for layer in profile_layers(bundles["narrow"], ONE, tasks="edge", rounds=2)["layers"]]
    assert any(name.startswith("edge") for name in names)
    assert not any(name.startswith("depth") for name in names)


def test_latency_of_a_program_on_this_machine() -> None:
    small = program(nn.Conv2d(3, 4, 3), torch.rand(2, 3, 16, 16))
    assert 0 < latency_ms(small) < 1000


def test_devices_by_name() -> None:
    assert "local-cpu" in devices()
    assert device("local-cpu").local
    with pytest.raises(UserError, match="no device 'local-cpo'; did you mean 'local-cpu'"):
        device("local-cpo")
    assert this_machine()["onnxruntime"]


def test_a_package_can_bring_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name, value, group, dist = "board", "a_package:board", "mtlc.devices", None

        def load(self) -> Device:
            return Device("board", "A board")

    monkeypatch.setattr(
        "mtlc.entry_points.additions", lambda group: (Addition(Point()),) if group == "mtlc.devices" else ()
    )
    assert "board" in devices()
    assert device("board").title == "A board"
    with pytest.raises(UserError, match="only on this machine"):
        latency_ms(program(nn.Linear(2, 2), torch.zeros(1, 2)), "board")


class Scripted:
    """A session whose runs take what a script says, by the clock and by the processor, in ms: noise without a clock."""

    def __init__(self, clock: Clock, wall: list[float], cpu: list[float]) -> None:
        self.clock, self.wall, self.cpu, self.calls = clock, wall, cpu, 0

    def run(self, inputs: object, tasks: object) -> None:
        turn = max(self.calls - 1, 0) // 2  # one call to warm up, then an untimed and a timed one a round
        self.clock.wall += self.wall[turn % len(self.wall)] * 1e6
        self.clock.cpu += self.cpu[turn % len(self.cpu)] * 1e6
        self.calls += 1

    def close(self) -> None: ...


class Clock:
    wall = cpu = 0.0


def scripted(
    monkeypatch: pytest.MonkeyPatch, effort: Effort, others: float = 0.0, **series: tuple[list[float], list[float]]
) -> dict[str, Any]:
    """What is made of times that are known beforehand, while other processes use `others` of two cores."""
    clock = Clock()
    sessions = {label: Scripted(clock, *times) for label, times in series.items()}
    monkeypatch.setattr(Setting, "session", lambda self: sessions[str(self.path)])
    monkeypatch.setattr(in_turns, "_counter", lambda: (None, "not here"))
    monkeypatch.setattr(in_turns, "load_since", lambda _: {"load_1min": 0.0, "cores": 2, "others_cores": others})
    monkeypatch.setattr(in_turns.time, "perf_counter_ns", lambda: clock.wall)
    monkeypatch.setattr(in_turns.time, "process_time_ns", lambda: clock.cpu)
    monkeypatch.setattr(in_turns.time, "perf_counter", lambda: clock.wall / 1e9)
    return measure_settings({label: Setting(label) for label in series}, ONE, effort=effort)


def test_the_speed_up_is_that_of_the_rounds_and_not_of_the_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the rounds are disturbed on both sides alike: every round says ×2, whatever the medians do."""
    found = scripted(
        monkeypatch, Effort(50, warmup=1), a=([4.0, 12.0], [4.0, 4.4]), b=([2.0, 6.0], [2.0, 2.2])
    )  # fmt: skip
    assert found["rounds"] == 50
    assert found["speedup"]["b"] == pytest.approx(
        {"median": 2.0, "p10": 2.0, "p90": 2.0, "low": 2.0, "high": 2.0, "cpu": 2.0, "doubt": None}
    )
    assert found["doubts"] == []
    assert found["load"] == {"load_1min": 0.0, "cores": 2, "others_cores": 0.0, "waited_s": None}


def test_rounds_are_added_until_the_ratio_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first 60 rounds are noise: 50 tell nothing, of 100 the middle third says ×2, and the rest is still told."""
    noisy = ([2.0, 8.0] * 30 + [4.0] * 340, [1.0])
    found = scripted(monkeypatch, Effort(50, 400, warmup=1), a=noisy, b=([2.0], [1.0]))
    ratio = found["speedup"]["b"]
    assert (found["rounds"], ratio["median"], ratio["low"], ratio["high"]) == (100, 2.0, 2.0, 2.0)
    assert ratio["doubt"] == "the rounds differ: one in ten is below 1.00x, one in ten above 4.00x"
    endless = scripted(monkeypatch, Effort(50, 400, warmup=1), a=([2.0, 8.0], [1.0]), b=([2.0], [1.0]))
    assert endless["rounds"] == 400
    assert endless["speedup"]["b"]["doubt"] == "after 400 rounds the ratio lies between 1.00x and 4.00x"
    exact = scripted(monkeypatch, Effort(50, None, warmup=1), a=([2.0, 8.0], [1.0]), b=([2.0], [1.0]))
    assert exact["rounds"] == 50


def test_no_round_is_added_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two turns of two calls of 100 and 500 ms on the mean: 50 rounds last a minute already."""
    found = scripted(monkeypatch, Effort(50, 400, warmup=1), a=([100.0, 900.0], [1.0]), b=([100.0], [1.0]))
    assert found["rounds"] == 51


def test_a_busy_machine_makes_all_figures_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    found = scripted(monkeypatch, Effort(4, warmup=1), others=1.2, a=([2.0], [1.0]), b=([1.0], [1.0]))
    assert found["doubts"] == ["the machine was busy: other processes used 1.2 of 2 cores"]
    alone = scripted(monkeypatch, Effort(4, warmup=1), a=([1.0, 2.0, 3.0, 4.0], [1.0]))
    assert alone["doubts"] == ["after 4 rounds the median lies between 1 and 4 ms"]


def test_the_quiet_is_waited_for_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_turns, "wait_quiet", lambda log: 12.34)
    found = scripted(monkeypatch, Effort(4, warmup=1, wait_quiet=True), a=([2.0], [1.0]))
    assert found["load"]["waited_s"] == 12.3


def test_rounds_that_are_asked_for_are_exact() -> None:
    assert (Effort.asked(7).rounds, Effort.asked(7).most) == (7, None)
    assert (Effort.asked(None).rounds, Effort.asked(None).most) == (50, 400)
    assert (Effort.asked(None, usual=200).rounds, Effort.asked(None, usual=200).most) == (200, 1600)
