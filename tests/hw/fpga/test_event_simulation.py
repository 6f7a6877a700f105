"""The simulation by hand, against the published tables and formulas, and what holds for any network and accelerator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit.fpga_samples import TINY, TINY_FRAME, cases, tiny_accelerator

from mtlc.errors import UserError
from mtlc.hw.fpga.accelerator import Accelerator, LruSettings, accelerator
from mtlc.hw.fpga.closed_form import closed_form
from mtlc.hw.fpga.event_simulation import simulate
from mtlc.hw.fpga.lru_accesses import accesses, misses
from mtlc.hw.fpga.schedule import UNITS, expert_bytes, schedule
from mtlc.hw.fpga.switching import SwitchCost, switch_costs
from mtlc.hw.routing.moe_vit_shape import PUBLISHED, Block, MoeVit
from mtlc.hw.routing.routing_trace import Frame, RoutingTrace, synthetic
from mtlc.hw.rtl.published_cycles import reordered_layer

M3VIT, EDGE_MOE = accelerator("m3vit-zcu104"), accelerator("edge-moe-zcu102")
ATTENTION = (
    19 + 9 + 9 + 9 + 5 + 3
)  # load and product of qkv, two products of scores, load and product of the projection
BEFORE_EXPERTS = 96 + (ATTENTION + 20 + 12 + 17 + 12) + ATTENTION + 2 + 6  # embedding, block 0, attention, gate


# ---- by hand ------------------------------------------------------------------------------------------------------


def test_expert_by_expert_by_hand() -> None:
    # Expert 0 loads in 10 cycles; its two tokens take 4, hidden under expert 1's 10; one token takes 2.
    found = simulate(TINY, tiny_accelerator(), "reordered", [TINY_FRAME])
    assert found.cycles == BEFORE_EXPERTS + 10 + 10 + 2
    assert found.ms == pytest.approx(found.cycles / 1e5)
    assert found.kind == "modelled"
    embed, dense, moe = found.layers
    assert (embed.cycles, dense.cycles, moe.cycles) == (96, 115, ATTENTION + 8 + 22)
    assert dense.busy == {"linear": 36, "attention": 18, "vector": 0, "gate": 0, "ddr": 61}
    assert (dense.stall, dense.ddr_bytes) == (61, 152 + 40 + 160 + 136)
    assert (moe.stall, moe.ddr_bytes) == (19 + 5 + 2 + 10 + 6, 152 + 40 + 16 + 2 * 80)
    assert found.queue_places == 3


def test_token_by_token_by_hand() -> None:
    # One place in the cache: experts 0, 1, 0 miss, 10 cycles of loading and 2 of work each.
    found = simulate(TINY, tiny_accelerator(), "cache", [TINY_FRAME])
    assert (found.cycles, found.misses) == (BEFORE_EXPERTS + 3 * 12, 3)
    held = simulate(TINY, tiny_accelerator(experts={"cache": 2}), "cache", [TINY_FRAME])
    assert (held.cycles, held.misses) == (BEFORE_EXPERTS + 2 * 12 + 2, 2)


def test_all_experts_resident_by_hand() -> None:
    # The experts' 20 cycles of loading follow the gate's load, beside the gate's 6 cycles; then three tokens of 2.
    found = simulate(TINY, tiny_accelerator(), "resident", [TINY_FRAME])
    assert found.ddr_bytes == 152 + 40 + 160 + 136 + 152 + 40 + 16 + 160
    assert found.cycles == BEFORE_EXPERTS - 6 + 20 + 6
    early = simulate(TINY, tiny_accelerator(weights={"prefetch": True, "buffers": 4}), "resident", [TINY_FRAME])
    assert early.layers[2].stall == 0


def test_dense_twin_by_hand() -> None:
    # Block 1 has a perceptron 4 → 4 → 4 instead of experts: two loads of 5 cycles and two products of 3.
    found = simulate(TINY, tiny_accelerator(), "dense", dense_frames=2)
    assert found.frame_cycles == (96 + 115 + ATTENTION + 16,) * 2


def test_prefetch_hides_loads_behind_work_by_hand() -> None:
    # The embedding's 96 cycles hide the first two loads (two buffers); nothing waits before the perceptron's weights.
    found = simulate(TINY, tiny_accelerator(weights={"prefetch": True, "buffers": 4}), "reordered", [TINY_FRAME])
    spans = {(span.layer, span.name, span.unit): span for span in found.spans}
    assert spans["block 0", "qkv", "linear"].start == 96
    assert spans["block 0", "qkv", "ddr"].end == 19
    assert spans["block 0", "fc2", "ddr"].end == 19 + 5 + 20 + 17
    assert found.layers[1].stall == 0


def test_first_expert_ahead_of_the_gate() -> None:
    early = tiny_accelerator(weights={"prefetch_first_expert": True})
    found = simulate(TINY, early, "reordered", [TINY_FRAME])
    # Its load starts with the gate's 6 cycles instead of after them.
    assert found.cycles == BEFORE_EXPERTS - 6 + 10 + 10 + 2
    other = Frame("task", (np.array([[1], [1], [1]]),))
    lost = simulate(TINY, early, "reordered", [other])
    assert (lost.wasted_loads, lost.ddr_bytes) == (1, found.ddr_bytes)
    assert lost.cycles == BEFORE_EXPERTS - 6 + 10 + 10 + 6  # the load for nothing, the expert's own, three tokens


def test_a_matrix_larger_than_a_buffer_is_cut_along_its_outputs() -> None:
    small = tiny_accelerator(weights={"buffer_bytes": 32, "load_unit": "matrix"})
    names = [step.name for step in schedule(TINY, small, "reordered", [TINY_FRAME]).steps]
    assert [name for name in names if name.startswith("fc1")] == [
        f"fc1, outputs {first} to {first + 3}" for first in (0, 4, 8, 12)
    ]
    with pytest.raises(UserError, match=r"buffer_bytes = 16: block 0, fc2 needs 32 for the weights of one output"):
        simulate(TINY, tiny_accelerator(weights={"buffer_bytes": 16}), "reordered", [TINY_FRAME])


def test_lru_by_hand() -> None:
    route = np.array([[0, 1], [1, 2], [0, 1]])
    in_order = list(accesses(route, LruSettings(cache=2)))
    assert [(a.expert, a.hit, a.evicted) for a in in_order] == [
        (0, False, None), (1, False, None), (1, True, None), (2, False, 0), (0, False, 1), (1, False, 2),
    ]  # fmt: skip
    first = list(accesses(route, LruSettings(cache=2, lookup="hits_first")))
    assert [(a.expert, a.hit) for a in first[4:]] == [(1, True), (0, False)]
    with pytest.raises(UserError, match="needs room for top-2"):
        list(accesses(route, LruSettings(cache=1, lookup="hits_first")))


# ---- published tables ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "policy", "published"),
    [
        ("pascal-small", "dense", 68.931), ("pascal-small", "cache", 637.478), ("pascal-small", "reordered", 69.033),
        ("nyud-small", "dense", 84.418), ("nyud-small", "cache", 750.557), ("nyud-small", "reordered", 84.538),
    ],
)  # fmt: skip
def test_m3vit_hardware_table_within_one_percent(network: str, policy: str, published: float) -> None:
    shape = PUBLISHED[network]
    found = simulate(shape, M3VIT, policy, synthetic(shape).sequence(["task"]))  # type: ignore[arg-type]
    assert found.ms == pytest.approx(published, rel=0.01)
    formula = M3VIT.ms(sum(closed_form(shape, M3VIT, policy).values()))  # type: ignore[arg-type]
    assert found.ms == pytest.approx(formula, rel=0.003)  # queries in fours, and a random trace for the mean


def test_edge_moe_within_ten_percent_and_its_gains_in_order() -> None:
    shape = PUBLISHED["cityscapes-tiny"]
    frames = synthetic(shape).sequence(["task"])
    assert simulate(shape, EDGE_MOE, "reordered", frames).ms == pytest.approx(34.64, rel=0.1)
    times = ablation(shape, frames)
    published = [34.64, 104.3, 212.9, 353.4, 433.4, 650.3]
    gains, theirs = np.diff(times), np.diff(published)
    assert np.argsort(gains).tolist() == np.argsort(theirs).tolist()  # which technique is worth most, and least


def ablation(shape: MoeVit, frames: list[Frame]) -> list[float]:
    off: dict[str, object] = {}
    times = [simulate(shape, EDGE_MOE, "reordered", frames).ms]
    for name in ("attention_reorder", "unified_linear", "gelu_table", "single_pass_softmax", "patch_reorder"):
        off[name] = False
        policy = "cache" if name == "patch_reorder" else "reordered"
        times.append(simulate(shape, EDGE_MOE.changed(techniques=off), policy, frames).ms)  # type: ignore[arg-type]
    return times


def test_edge_moe_units_are_those_of_its_iteration_counts() -> None:
    shape = PUBLISHED["cityscapes-tiny"]
    found = simulate(shape, EDGE_MOE, "reordered", synthetic(shape).sequence(["task"]))
    assert found.busy("attention") == 12 * 2 * 2 * 33 * 129 * 24
    assert EDGE_MOE.ms(found.busy("attention")) == pytest.approx(8.17 + 8.17, abs=0.01)


def test_uniform_reordered_layer_is_the_formula() -> None:
    # 64 tokens on 16 experts of 4 each: queues as long as the formula has them.
    assert reordered_layer([100, 0, 40], 192, 9240) == 9240 + 192 * 100 + 192 * 40
    assert reordered_layer([40, 100], 192, 9240, first_is_there=True) == 9240 + 19_200
    shape = PUBLISHED["pascal-small"]
    even = Frame("task", (np.arange(1025 * 4).reshape(1025, 4) % 16,) * 6)
    hw = M3VIT.changed(weights={"prefetch_first_expert": False})
    found = simulate(shape, hw, "reordered", [even])
    part = closed_form(shape, hw, "reordered")
    assert found.stall == pytest.approx(part["waits"], rel=0.03) == pytest.approx(6 * 9240)
    assert found.busy("gate") == part["gates"] == 6 * 1025 * 5


# ---- what holds for all -------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(cases(), st.sampled_from(["dense", "cache", "resident", "reordered"]))
def test_bounds_bytes_and_sums(case: tuple[MoeVit, Accelerator, list[Frame]], policy: str) -> None:
    network, hw, frames = case
    found = simulate(network, hw, policy, frames)  # type: ignore[arg-type]
    run = network.dense() if policy == "dense" else network
    work = sum(found.busy(unit) for unit in UNITS)
    assert found.cycles == work + found.stall  # a step runs or waits for weights
    assert found.cycles >= found.busy("ddr")
    assert found.busy("ddr") * hw.ddr.weight_port_bytes >= found.ddr_bytes
    assert sum(layer.cycles for layer in found.layers) == found.cycles == sum(found.frame_cycles)
    assert found.peak_buffers <= hw.weights.buffers
    stays = sum(hw.weight_bytes(run.gate_parameters(i)) for i in run.moe_blocks) if hw.gates == "current_task" else 0
    assert found.occupancy[-1][1] == stays  # everything else left the chip
    assert found.peak_weight_bytes >= max(load.size for load in schedule(network, hw, policy, frames).loads)  # type: ignore[arg-type]
    macs = (run.macs() - sum(network.tokens * run.gate_parameters(i) for i in run.moe_blocks)) * len(
        frames if policy != "dense" else [1]
    )
    assert (
        found.busy("linear") * hw.array.macs + found.busy("attention") * hw.attention.queries * hw.attention.inputs
        >= macs
    )


@settings(max_examples=40, deadline=None)
@given(cases())
def test_expert_traffic(case: tuple[MoeVit, Accelerator, list[Frame]]) -> None:
    network, hw, frames = case
    sizes = [expert_bytes(network, network.blocks[index], hw) for index in network.moe_blocks]

    def traffic(policy: str) -> int:
        made = schedule(network, hw, policy, frames)  # type: ignore[arg-type]
        return sum(load.size for load in made.loads if load.name.startswith("expert"))

    active = sum(
        size * len(np.unique(route)) for frame in frames for size, route in zip(sizes, frame.layers, strict=True)
    )
    wasted = schedule(network, hw, "reordered", frames).wasted
    assert traffic("reordered") == active + wasted * (sizes[0] if sizes else 0)
    missed = sum(size * misses(r, hw.experts) for frame in frames for size, r in zip(sizes, frame.layers, strict=True))
    assert traffic("cache") == missed >= active
    assert traffic("resident") == len(frames) * sum(
        size * network.blocks[index].experts for size, index in zip(sizes, network.moe_blocks, strict=True)
    )


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 30), st.integers(1, 8), st.data(), st.sampled_from(["in_order", "hits_first"]))
def test_a_bigger_cache_never_misses_more(tokens: int, experts: int, data: st.DataObject, lookup: str) -> None:
    top_k = data.draw(st.integers(1, experts))
    order = np.random.default_rng(data.draw(st.integers(0, 999)))
    route = np.array([order.permutation(experts)[:top_k] for _ in range(tokens)])
    found = [misses(route, LruSettings(cache=c, lookup=lookup)) for c in range(top_k, experts + 1)]  # type: ignore[arg-type]
    assert found == sorted(found, reverse=True)
    assert found[-1] == len(np.unique(route))


@settings(max_examples=40, deadline=None)
@given(cases())
def test_a_wider_port_never_slows_a_frame(case: tuple[MoeVit, Accelerator, list[Frame]]) -> None:
    network, hw, frames = case
    wide = hw.changed(ddr={"weight_port_bytes": 64, "bandwidth_gbs": 6.4})
    for policy in ("cache", "reordered"):
        slow, fast = (simulate(network, one, policy, frames) for one in (hw, wide))  # type: ignore[arg-type]
        assert fast.cycles <= slow.cycles
        assert fast.ddr_bytes == slow.ddr_bytes


# ---- tasks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "network"), [("m3vit-zcu104", "pascal-small"), ("edge-moe-zcu102", "cityscapes-tiny")]
)
def test_a_switch_of_task_costs_no_cycle_and_no_byte(name: str, network: str) -> None:
    trace = synthetic(PUBLISHED[network], ("semseg", "depth", "normals"), skew=1.0)
    found = switch_costs(PUBLISHED[network], accelerator(name), trace)
    assert len(found) == 6
    assert set(found.values()) == {SwitchCost(0, 0)}


def test_gates_that_must_be_reloaded_cost_what_they_weigh() -> None:
    shape = PUBLISHED["pascal-small"]
    trace = synthetic(shape, ("semseg", "depth"))
    found = switch_costs(shape, M3VIT.changed(gates="current_task"), trace)
    assert set(found.values()) == {SwitchCost(6 * 384 * 16 * 2 // 64, 6 * 384 * 16 * 2)}
    assert set(switch_costs(shape, M3VIT.changed(gates="all_tasks"), trace).values()) == {SwitchCost(0, 0)}


# ---- bad input ----------------------------------------------------------------------------------------------------


def test_a_trace_of_another_network_is_one_line() -> None:
    shape = PUBLISHED["pascal-small"]
    other = synthetic(PUBLISHED["nyud-small"]).sequence(["task"])
    with pytest.raises(
        UserError, match=r"another network: task 'task', block 1 has places \(1201, 4\), not \(1025, 4\)"
    ):
        simulate(shape, M3VIT, "reordered", other)
    with pytest.raises(UserError, match="has 1 layers of experts, not 6"):
        simulate(shape, M3VIT, "reordered", [TINY_FRAME])
    with pytest.raises(UserError, match="block 1 names expert 2, but there are 2"):
        simulate(TINY, tiny_accelerator(), "cache", [Frame("task", (np.array([[2], [0], [0]]),))])
    with pytest.raises(UserError, match="holds no frame"):
        RoutingTrace({}, "").check(TINY)


def test_a_policy_needs_experts_and_frames() -> None:
    plain = MoeVit(3, 4, 1, 12, (Block(4, 8),), 4)
    with pytest.raises(UserError, match="the network has no experts; use 'dense'"):
        simulate(plain, tiny_accelerator(), "reordered", [TINY_FRAME])
    with pytest.raises(UserError, match="policy = 'fast': must be one of dense, cache, resident, reordered"):
        simulate(TINY, tiny_accelerator(), "fast", [TINY_FRAME])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="at least one frame"):
        simulate(TINY, tiny_accelerator(), "reordered")
