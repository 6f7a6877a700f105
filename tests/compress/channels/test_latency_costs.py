"""Milliseconds as the cost of removed channels: what a question costs, and that pruning meets its budget."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from testkit.pruning import context, run
from testkit.tiny_networks import chain_program, taught_splits

from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.compress.channels.latency_costs import LatencyCosts
from mtlc.compress.pagcp.sweep import Rules, _narrower, kept_counts
from mtlc.compress.pruning import rounds
from mtlc.hw.latency_table.kernels import Kernel, Operand, Traced, trace_program
from mtlc.hw.latency_table.probe import channel_block
from mtlc.hw.latency_table.table import LatencyTable
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec
from mtlc.zoo import m3vit, mtl_resnet

IMAGE = {"image": torch.zeros(2, 3, 32, 32)}


def weights_ms(kernel: Kernel) -> float:
    """A machine on which what counts are the multiplications, and a little the elements."""
    weights = [math.prod(o.shape) for o in kernel.inputs if o is not None and o.weight and len(o.shape) > 1]
    return 1e-3 + 1e-5 * sum(weights) + 1e-7 * kernel.elements


def table() -> LatencyTable:
    return LatencyTable({"cpu": "none"}, channel_block(), weights_ms)


def groups_of(program: Program) -> ChannelGroups:
    example = program.example_inputs()
    return ChannelGroups(program.module, example)


def cut(program: Program, removed: dict[str, list[int]]) -> Program:
    built = program.clone()
    groups_of(built).prune(removed)
    return built


def networks() -> dict[str, Program]:
    torch.manual_seed(0)
    cnn = mtl_resnet(("depth", "sal"), (32, 64), (1, 1), 32).eval()
    tasks = (TaskSpec("depth", "mse", "mse"), TaskSpec("sal", "mse", "mse"))
    source = ModelSource("tests:none")
    vit = m3vit("micro", ("depth",), image_size=(32, 32), blocks=1, width=64, heads=4).eval()
    return {"cnn": Program(cnn, tasks, IMAGE, source), "vit": Program(vit, tasks[:1], IMAGE, source)}


@pytest.mark.parametrize("which", ["cnn", "vit"])
def test_a_question_costs_what_the_rebuilt_network_is_predicted_to_cost(which):
    program = networks()[which]
    units = {unit.name: unit for unit in groups_of(program).units}
    traced, known = trace_program(program), table()
    costs = LatencyCosts(program, units, traced, known, 10.0)
    assert costs.cost({}) == pytest.approx(10.0)
    removed = {
        name: list(range(unit.channels // 2, unit.channels))
        for name, unit in units.items()
        if unit.channels % 8 == 0 or unit.kind == "heads"
    }
    built = known.predict(trace_program(cut(program, removed))).ms
    assert costs.cost(removed) == pytest.approx(10.0 * built / known.predict(traced).ms, rel=0.02)
    assert costs.cost(removed) < 0.9 * 10.0


def stairs() -> SimpleNamespace:
    """A cost that falls with every 16 channels of the only unit."""
    return SimpleNamespace(kind="latency", cost=lambda removed: float(-(-(64 - len(removed.get("u", ()))) // 16)))


def test_steps_that_save_no_time_are_left_out():
    unit = SimpleNamespace(name="u", channels=64, multiple=1, width=1)
    rules = Rules(round_to=8)
    assert kept_counts(64, rules) == [64 - 8 * i for i in range(1, 8)]
    assert _narrower(unit, {}, rules, stairs()) == [48, 32, 16]
    assert _narrower(unit, {"u": list(range(8))}, rules, stairs()) == [48, 32, 16]
    macs = SimpleNamespace(kind="macs", cost=stairs().cost)
    assert _narrower(unit, {}, rules, macs) == kept_counts(64, rules)


@pytest.fixture(scope="module")
def chain() -> Program:
    return chain_program()


@pytest.fixture
def synthetic(monkeypatch, chain):
    """The machine of `weights_ms`, on which the whole chain takes 1 ms; real kernels, no clock."""
    known = table()
    whole = known.predict(trace_program(chain)).ms

    def measured(program: Program, device: str) -> float:
        return known.predict(trace_program(program)).ms / whole * drift[0]

    def costs(program, units, measured_ms, log):
        return LatencyCosts(program, units, trace_program(program), known, measured_ms)

    drift = [1.0]
    monkeypatch.setattr(rounds, "latency_ms", measured)
    monkeypatch.setattr(rounds, "latency_costs", costs)
    return drift


def test_a_latency_budget_is_met_and_the_prediction_is_what_is_measured(tmp_path, synthetic, chain):
    lines: list[str] = []
    given = context(chain, taught_splits(chain), tmp_path, "latency", 0.8, lines)
    result = run(chain, given, initial_thres=1e3, finetune=None)
    assert result.missed is None
    cost = result.report["rounds"][-1]["cost"]
    assert cost["kind"] == "latency"
    assert result.report["reached"] == cost["measured"] <= 0.8
    assert cost["measured"] == pytest.approx(cost["after"], rel=0.05)
    assert not any("where the latency table said" in line for line in lines)


def test_a_machine_that_is_slower_than_predicted_is_said(tmp_path, synthetic, chain, monkeypatch):
    lines: list[str] = []
    honest, calls = rounds.latency_ms, []

    def slower(program: Program, device: str) -> float:
        calls.append(program)
        return honest(program, device) * (1.0 if len(calls) <= 2 else 1.2)

    monkeypatch.setattr(rounds, "latency_ms", slower)
    given = context(chain, taught_splits(chain), tmp_path, "latency", 0.9, lines)
    result = run(chain, given, method="pagcp", initial_thres=1e3, finetune=None)
    assert result.missed is None
    cost = result.report["rounds"][-1]["cost"]
    assert cost["measured"] == pytest.approx(1.2 * cost["after"], rel=0.05)
    assert any("where the latency table said" in line for line in lines)


def test_kernels_without_channels_of_units_are_constant():
    program = networks()["cnn"]
    one = Operand("float", (1, 8, 4, 4))
    traced = Traced((Kernel("x", ":Add", "{}", (one, one), (one,), 0.5),), (4,), 1)
    costs = LatencyCosts(program, {}, traced, LatencyTable({}, 16, lambda kernel: 0.25), None)
    assert costs.cost({}) == 1.0 == costs.cost({"nothing": [1]})
