"""The latency table: families, interpolation, its file, and that networks are the sum of their kernels."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit.costed_networks import program
from torch import nn

from mtlc.errors import Unavailable, UserError
from mtlc.hw.latency_table import table as tables
from mtlc.hw.latency_table.families import Family, corners, placed, resized
from mtlc.hw.latency_table.kernels import Kernel, Operand, Traced, trace_program
from mtlc.hw.latency_table.probe import KernelTimer
from mtlc.hw.latency_table.table import LatencyTable, Observation, machine_key, open_table, table_path


def conv(cin: int, cout: int, size: int = 8, groups: int = 1, domain: str = "com.microsoft.nchwc") -> Kernel:
    attributes = json.dumps({"group": groups, "pads": [1, 1, 1, 1]})
    image, made = Operand("float", (1, cin, size, size)), Operand("float", (1, cout, size, size))
    weight = Operand("float", (cout, cin // groups, 3, 3), weight=True)
    return Kernel("layer", f"{domain}:Conv", attributes, (image, weight), (made,), 1.0)


def product(rows: tuple[int, ...], inner: int, outer: int) -> Kernel:
    weight = Operand("float", (inner, outer), weight=True)
    return Kernel(
        "fc", ":MatMul", "{}", (Operand("float", (*rows, inner)), weight), (Operand("float", (*rows, outer)),), 1.0
    )


def add(channels: int, size: int = 8) -> Kernel:
    one = Operand("float", (1, channels, size, size))
    return Kernel("sum", ":Add", "{}", (one, one), (one,), 0.5)


def macs_ms(kernel: Kernel) -> float:
    """A machine on which a multiplication with a weight takes a microsecond and an element a nanosecond."""
    weights = [o for o in kernel.inputs if o is not None and o.weight]
    return sum(math.prod(o.shape) for o in weights) * 1e-3 + kernel.elements * 1e-6


def synthetic(timer=macs_ms, block: int = 16) -> LatencyTable:
    return LatencyTable({"cpu": "none"}, block, timer)


def test_kernels_that_differ_in_channels_only_are_of_one_family():
    family, sizes = placed(conv(32, 64), 16)
    other, others = placed(conv(48, 16), 16)
    assert family == other
    assert (sizes, others) == ((32, 64), (48, 16))
    assert placed(conv(32, 64, size=16), 16)[0] != family
    assert placed(product((1, 65), 96, 384), 16)[1] == (96, 384)
    assert placed(product((7,), 96, 384), 16)[1] == (7, 96, 384)
    assert placed(conv(32, 32, groups=32), 16)[1] == (32,)
    assert placed(add(24), 16)[1] == (24,)


@pytest.mark.parametrize(
    ("kernel", "sizes", "expected"),
    [
        (conv(32, 64), (48, 16), conv(48, 16)),
        (conv(32, 32, groups=32), (48,), conv(48, 48, groups=48)),
        (product((1, 65), 96, 384), (64, 32), product((1, 65), 64, 32)),
        (product((7,), 96, 384), (9, 64, 32), product((9,), 64, 32)),
        (add(24), (40,), add(40)),
    ],
)
def test_a_resized_kernel_is_the_kernel_of_those_sizes(kernel, sizes, expected):
    family, _ = placed(kernel, 16)
    changed = resized(kernel, family, sizes)
    assert (changed.inputs, changed.outputs) == (expected.inputs, expected.outputs)
    assert json.loads(changed.attributes) == json.loads(expected.attributes)
    assert placed(changed, 16) == (family, sizes)


@given(st.integers(1, 4000))
def test_interpolation_weights_give_the_size_back_and_are_exact_on_the_grid(size):
    smooth = Family("", "channels")
    points = corners(smooth, (size,))
    assert sum(share for _, share in points) == pytest.approx(1)
    assert sum(share * point[0] for point, share in points) == pytest.approx(size)
    on_grid = points[0][0][0]
    assert corners(smooth, (on_grid,)) == [((on_grid,), 1.0)]


@given(st.integers(1, 1000))
def test_a_blocked_family_is_padded_up_but_for_few_input_channels(size):
    ((point, share),) = corners(Family("", "convolution", 16), (size, size))
    assert share == 1
    assert point[1] % 16 == 0
    assert size <= point[1] < size + 16
    assert point[0] == (size if size < 16 else point[1])


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40))
def test_a_monotone_table_is_monotone_between_its_points(inner, outer, more):
    table = synthetic()
    base = table.kernel_ms(product((1, 65), inner, outer))
    assert table.kernel_ms(product((1, 65), inner + more, outer)) > base
    assert table.kernel_ms(product((1, 65), inner, outer + more)) > base
    # What is linear in both sizes, the interpolation reproduces.
    assert base == pytest.approx(macs_ms(product((1, 65), inner, outer)), rel=1e-9)


def test_times_of_blocked_convolutions_are_stairs():
    table = synthetic()
    assert table.kernel_ms(conv(24, 17)) == table.kernel_ms(conv(32, 32)) == macs_ms(conv(32, 32))
    assert table.kernel_ms(conv(3, 32)) == macs_ms(conv(3, 32))


def test_a_point_is_measured_once():
    asked = []
    table = synthetic(lambda kernel: asked.append(kernel) or 1.0)
    for _ in range(3):
        table.kernel_ms(conv(32, 32))
        table.kernel_ms(conv(20, 30))
    assert len(asked) == 1


def test_without_a_timer_what_is_missing_is_named():
    with pytest.raises(
        UserError, match=r"layer 'layer': the latency table has no com.microsoft.nchwc:Conv of this shape"
    ):
        synthetic(None).kernel_ms(conv(32, 32))


def test_what_cannot_be_timed_alone_takes_what_it_took_in_its_network():
    def refuse(kernel: Kernel) -> float:
        raise Unavailable("no")

    table = synthetic(refuse)
    assert table.kernel_ms(add(32)) == 0.5
    assert table.at(add(32), placed(add(32), 16)[0], (16,)) == 0.25


def test_a_prediction_is_the_sum_and_learns_the_overheads():
    table = synthetic()
    small, large = Traced((conv(16, 16),), (1,), 1), Traced((conv(16, 16), add(16)), (3, 3), 2)
    plain = table.predict(large)
    assert plain.ms == plain.kernels_ms == pytest.approx(3 * (macs_ms(conv(16, 16)) + macs_ms(add(16))))
    assert plain.layers == {
        "layer": pytest.approx(3 * macs_ms(conv(16, 16))),
        "sum": pytest.approx(3 * macs_ms(add(16))),
    }
    for traced in (small, large):
        table.observe(
            traced,
            table.predict(Traced(traced.kernels, traced.runs, traced.calls)).kernels_ms + 0.02 * traced.kernel_runs,
        )
    scale, launch, call = table.inside()
    assert (scale, launch, call) == (1.0, pytest.approx(0.02), pytest.approx(0, abs=1e-9))
    assert table.predict(large).ms == pytest.approx(plain.ms + 0.12)


@pytest.fixture
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return table_path(machine_key(1))


def test_the_file_is_keyed_by_the_machine(cached, monkeypatch):
    table = open_table(1)
    assert table.path == cached
    assert not table.entries
    table.entries = {"a family": {"16,16": 0.25}}
    table.save()
    again = open_table(1)
    assert again.entries == table.entries
    assert again.reference_ms == table.reference_ms
    assert json.loads(cached.read_text())["kind"] == "measured"
    assert table_path(machine_key(2)) != cached
    # The same file, as if copied from another machine.
    here = machine_key(1)
    monkeypatch.setattr(tables, "machine_key", lambda threads: {**here, "cpu": "another"})
    said: list[str] = []
    assert open_table(1, cached, said.append).entries == {}
    assert said == [f"{cached}: the latency table of another machine or version; measuring anew"]


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}', "null", '{"schema": 1, "machine": 3, "block": 16}'])
def test_a_corrupt_file_is_measured_anew_and_said(cached, text):
    cached.parent.mkdir(parents=True)
    cached.write_text(text)
    said: list[str] = []
    assert open_table(1, log=said.append).entries == {}
    assert len(said) == 1
    assert str(cached) in said[0]
    assert "measuring anew" in said[0]


def test_a_time_that_is_not_the_one_written_is_measured_anew_and_said(cached):
    table = open_table(1)
    table.entries = {"a family": {"16,16": 0.25}}
    table.save()
    cached.write_text(cached.read_text().replace("0.25", "0.75"))
    said: list[str] = []
    assert open_table(1, log=said.append).entries == {}
    assert said == [f"{cached}: damaged (its SHA-256 is not what was written); measuring anew"]


def test_two_processes_keep_what_each_measured(cached):
    """Both begin without a file. The second's times and sums are scaled to the first's reference: 2 ms to 1 ms."""
    one, two = open_table(1), open_table(1)
    one.reference_ms, two.reference_ms = 1.0, 2.0
    one.entries = {"a": {"1,1": 0.25, "2,2": 0.5}, "b": {"1": 1.0}}
    two.entries = {"a": {"2,2": 3.0, "4,4": 5.0}, "c": {"1": 7.0}}
    one.observations, two.observations = [Observation(1.0, 2, 1, 4.0)], [Observation(8.0, 3, 1, 5.0)]
    one.save()
    for _ in range(2):  # and nothing twice
        two.save()
    one.save()
    found = open_table(1)
    assert found.reference_ms == 1.0
    assert found.entries == {"a": {"1,1": 0.25, "2,2": 0.5, "4,4": 2.5}, "b": {"1": 1.0}, "c": {"1": 3.5}}
    assert found.observations == [Observation(1.0, 2, 1, 4.0), Observation(4.0, 3, 1, 5.0)]
    assert [entry.name for entry in cached.parent.iterdir()] == [cached.name]


def test_negative_times_are_not_taken(cached):
    table = open_table(1)
    table.entries = {"a family": {"16,16": -0.25}}
    table.save()
    assert open_table(1).entries == {}


def test_a_timer_scales_by_the_reference_beside_the_kernel():
    """A clock that ticks once a reading: every call takes one tick, so a kernel takes nothing beyond its call."""
    ticks = iter(range(10**9))
    timer = KernelTimer(1, 2.0, lambda: next(ticks))
    assert timer(conv(16, 16, domain="")) == 0.0
    assert timer.reference_now() == pytest.approx(1e-6)


def test_a_subgraphs_kernel_is_not_timed_alone():
    with pytest.raises(Unavailable, match="inner:Add cannot be timed alone"):
        KernelTimer(1, 1.0)(Kernel("x", "inner:Add", "{}", (), (), 1.0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 48, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(48, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(image).mean((2, 3)))


def test_a_real_network_is_traced_and_predicted(cached):
    torch.manual_seed(0)
    traced = trace_program(program(Net().eval(), torch.zeros(2, 3, 16, 16)))
    layers = [kernel.layer for kernel in traced.kernels]
    assert {"body.0", "body.2", "head"} <= set(layers)
    second = traced.kernels[layers.index("body.2")]
    assert placed(second, 16)[1] == (32, 48)
    assert second.reads[0] == traced.kernels[layers.index("body.0")].writes[0]
    prediction = open_table(1).predict(traced)
    assert 0.005 < prediction.ms < 50
    assert prediction.kind == "modelled"
    assert np.isclose(sum(prediction.layers.values()), prediction.ms)
    assert prediction.layers["body.2"] == max(prediction.layers.values())
