"""Descriptions, networks, traces, what a board holds, the design search, and the pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from testkit.fpga_samples import TINY, TINY_FRAME, tiny_accelerator
from testkit.places import DOCS

from mtlc.errors import UserError
from mtlc.hw.fpga.accelerator import accelerator, accelerators
from mtlc.hw.fpga.design_search import Design, explore_designs, pareto
from mtlc.hw.fpga.event_simulation import simulate
from mtlc.hw.fpga.resources import (
    Resources,
    board,
    check_fits,
    dsp_per_mac,
    on_chip_bytes,
    parameter_memory,
    resources,
)
from mtlc.hw.routing.moe_vit_shape import PUBLISHED, Block, MoeVit, from_program, moe_vit
from mtlc.hw.routing.routing_trace import Frame, RoutingTrace, load, record, synthetic
from mtlc.moe.extraction import keep_experts
from mtlc.program.program import ModelSource, Program
from mtlc.report.figures.fpga_timeline import ROWS, chrome_trace, timeline, timeline_figure, write_chrome_trace
from mtlc.tasks.task import TaskSpec
from mtlc.zoo.m3vit import m3vit

M3VIT, EDGE_MOE = accelerator("m3vit-zcu104"), accelerator("edge-moe-zcu102")
OWN = """
title = "mine"
board = "kv260"
clock_mhz = 200
linear = {outputs = 8, inputs = 8}
attention = {queries = 4, inputs = 8}
weights = {buffers = 2, buffer_bytes = 65536}
ddr = {bandwidth_gbs = 19.2, weight_port_bytes = 16}
"""


def micro(tasks: tuple[str, ...] = ("semseg", "depth")) -> Program:
    torch.manual_seed(0)
    module = m3vit("micro", dict.fromkeys(tasks, 1), blocks=2, image_size=(16, 24), experts=4, top_k=2).eval()
    with torch.no_grad():
        for _, router in module.routers():
            router.weight.normal_(std=0.5)
    specs = tuple(TaskSpec(task, "mse", "mse") for task in tasks)
    return Program(module, specs, {"image": torch.zeros(1, 3, 16, 24)}, ModelSource("mtlc.zoo:m3vit"))


# ---- descriptions -------------------------------------------------------------------------------------------------


def test_shipped_accelerators() -> None:
    assert accelerators() == ("edge-moe-zcu102", "m3vit-int8-zcu104", "m3vit-zcu104", "mtlc-engine-zcu104")
    assert M3VIT.linear.macs == M3VIT.attention.queries * M3VIT.attention.inputs == 1536
    assert EDGE_MOE.linear.macs == 256
    assert M3VIT.load_cycles(591_360) == 9240


def test_an_accelerator_of_one_s_own(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(OWN)
    found = accelerator(tmp_path / "mine.toml")
    assert (found.title, found.ms(2e5), found.weight_bytes(3)) == ("mine", 1.0, 6)
    assert found.changed(bits={"weights": 4}).weight_bytes(3) == 2
    assert found.linear.cycles(tokens=3, outputs=9, inputs=16) == 3 * 2 * 2


def test_the_description_in_the_documentation_is_one(tmp_path: Path) -> None:
    text = (DOCS / "fpga.md").read_text()
    (tmp_path / "mine.toml").write_text(text.split("```toml\n")[1].split("```")[0])
    found = accelerator(tmp_path / "mine.toml")
    frames = synthetic(PUBLISHED["cityscapes-tiny"]).sequence(["task"])
    assert 0 < simulate(PUBLISHED["cityscapes-tiny"], found, "reordered", frames).ms < 1000


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("clock_mhz", "clock_mzh", r"mine.toml: clock_mzh: unknown key; did you mean 'clock_mhz'"),
        ("queries = 4, ", "", r"mine.toml: \[attention\] queries: this key is required"),
        ("outputs = 8", "outputs = 0", r"\[linear\] outputs: input should be greater than 0, not 0"),
        ("bandwidth_gbs = 19.2", "bandwidth_gbs = 1.6", r"the ports take 16 bytes a cycle, but the memory gives 8\.0"),
        ("[", "[[", "not valid TOML"),
    ],
)
def test_a_description_that_is_wrong_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = OWN + "[experts]\ncache = 2\n"
    assert old in text
    (tmp_path / "mine.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as caught:
        accelerator(tmp_path / "mine.toml")
    assert "\n" not in str(caught.value)


def test_names_and_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no accelerator 'm3vit-zcu14'; did you mean 'm3vit-zcu104'"):
        accelerator("m3vit-zcu14")
    with pytest.raises(UserError, match=r"none\.toml: no such file"):
        accelerator(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        accelerator(tmp_path / "folder.toml")
    with pytest.raises(UserError, match="no device 'zcu103'; did you mean 'zcu10"):
        board("zcu103")
    with pytest.raises(UserError, match=r"device 'coral': its file has no \[fpga.dsp\], which"):
        board("coral")
    with pytest.raises(UserError, match=r"needs a section \[separate\]"):
        M3VIT.changed(techniques={"unified_linear": False})
    with pytest.raises(UserError, match="stream_keys needs an activation_port_bytes"):
        M3VIT.changed(ddr={"stream_keys": True})


# ---- networks -----------------------------------------------------------------------------------------------------


def test_published_shapes() -> None:
    pascal, tiny = PUBLISHED["pascal-small"], PUBLISHED["cityscapes-tiny"]
    assert (pascal.tokens, PUBLISHED["nyud-small"].tokens, tiny.tokens) == (1025, 1201, 129)
    assert pascal.moe_blocks == (1, 3, 5, 7, 9, 11)
    assert pascal.dense().macs() / 1e9 == pytest.approx(31.75, abs=0.005)
    assert pascal.dense().blocks == (Block(384, 1536),) * 12
    with pytest.raises(UserError, match="multiples of the patch"):
        moe_vit((100, 100), 8, 1)
    with pytest.raises(UserError, match="top_k = 5"):
        moe_vit((16, 16), 8, 1, experts=4, top_k=5)


def test_the_shape_of_a_program() -> None:
    program = micro()
    blocks = (Block(96, 384), Block(96, 96, 4, 2))
    assert from_program(program) == MoeVit(7, 96, 3, 192, blocks, 96, ("backbone.blocks.1.mlp",))
    keep_experts(program.module, {"backbone.blocks.1.mlp": {"kept": [0, 2], "reroute": True}})
    assert from_program(program).blocks[1] == Block(96, 96, 4, 2, (0, -1, 1, -1))


def test_a_program_s_macs_are_those_of_the_tracer() -> None:
    from mtlc.hw.cost.count import workload

    program = micro(("depth",))
    traced = sum(op.macs for op in workload(program).operators if op.name.startswith("backbone"))
    assert from_program(program).macs() == traced


def test_another_network_has_no_shape() -> None:
    other = Program(torch.nn.Linear(2, 2), (TaskSpec("t", "mse", "mse"),), {"x": torch.zeros(1, 2)}, ModelSource("a:b"))
    with pytest.raises(UserError, match=r"Linear: the accelerator's model knows networks of mtlc\.zoo:m3vit only"):
        from_program(other)
    with pytest.raises(UserError, match="no mixture of experts"):
        record(other, [torch.zeros(2)])


# ---- traces -------------------------------------------------------------------------------------------------------


def test_recorded_routes_are_the_router_s() -> None:
    program = micro()
    images = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    trace = record(program, list(images))
    network = from_program(program)
    trace.check(network)
    assert trace.tasks == ("semseg", "depth")
    assert [frame.task for frame in trace.sequence(["depth", "semseg", "depth"])] == ["depth", "semseg", "depth"]
    backbone = program.module.backbone
    with torch.inference_mode():
        first, second = backbone.blocks
        x = second.attend(first.feed(first.attend(backbone.embed(images[:1])), None, None))
        _, expected = second.mlp.router(second.norm2(x), torch.tensor([1]))
    assert np.array_equal(trace.frames["depth"][0].layers[0], expected[0].numpy())
    assert not np.array_equal(trace.frames["depth"][0].layers[0], trace.frames["semseg"][0].layers[0])
    assert trace.usage("depth", 0, 4).sum() == 7 * 2
    found = simulate(network, EDGE_MOE, "reordered", trace.sequence(["depth", "semseg"]))
    assert found.tasks == ("depth", "semseg")
    assert found.places == 2 * 7 * 2
    with pytest.raises(UserError, match="no task 'dept'; did you mean 'depth'"):
        record(program, list(images), ["dept"])


def test_a_dropped_expert_leaves_its_place_empty() -> None:
    program = micro()
    keep_experts(program.module, {"backbone.blocks.1.mlp": {"kept": [1]}})
    route = record(program, [torch.randn(3, 16, 24)], ["depth"]).frames["depth"][0].layers[0]
    assert set(np.unique(route)) <= {-1, 1}
    found = simulate(from_program(program), EDGE_MOE, "reordered", [Frame("depth", (route,))])
    assert found.places == (route >= 0).sum() < route.size


def test_synthetic_routes_are_distinct_seeded_and_skewed() -> None:
    network = PUBLISHED["pascal-small"]
    one, again = synthetic(network, seed=3), synthetic(network, seed=3)
    route = one.frames["task"][0].layers[2]
    assert np.array_equal(route, again.frames["task"][0].layers[2])
    assert (np.diff(np.sort(route, 1), axis=1) > 0).all()
    even, uneven = (synthetic(network, skew=s).usage("task", 0, 16) for s in (0.0, 2.0))
    assert even.max() / even.min() < 1.5
    assert uneven.max() > 0.9 * 1025 > 50 > uneven.min()
    with pytest.raises(UserError, match="skew must not be negative"):
        synthetic(network, skew=-1.0)


def test_a_trace_is_written_and_read(tmp_path: Path) -> None:
    trace = synthetic(TINY, ("a/b", "c"), frames=2)
    trace.save(tmp_path / "trace.npz")
    found = load(tmp_path / "trace.npz")
    assert (found.tasks, found.source) == (trace.tasks, trace.source)
    for one, other in zip(found.sequence(["a/b", "c", "c"]), trace.sequence(["a/b", "c", "c"]), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one.layers, other.layers, strict=True))
    (tmp_path / "bad.npz").write_bytes(b"PK no")
    with pytest.raises(UserError, match="not a routing trace"):
        load(tmp_path / "bad.npz")
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "none.npz")
    with pytest.raises(UserError, match="has no task 'd'"):
        RoutingTrace({"c": found.frames["c"]}, "").sequence(["d"])


# ---- memory and boards --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "published"), [("dense", 4.828), ("cache", 4.840), ("reordered", 4.840), ("resident", 11.610)]
)
def test_m3vit_memory_row(policy: str, published: float) -> None:
    found = parameter_memory(PUBLISHED["nyud-small"], M3VIT, policy) / 2**20  # type: ignore[arg-type]
    assert found == pytest.approx(published, abs=0.0005 if policy != "cache" else 0.0025)


def test_bytes_on_the_chip_by_hand() -> None:
    # Block 0: norms 16, attention biases 12 + 4, perceptron biases 16 + 4. Gate 4 × 2.
    # Embedding 192 · 4 + 4 + 3 · 4 + 4.
    found = on_chip_bytes(TINY, tiny_accelerator(), "reordered")
    assert found == {
        "weights": 2048, "vectors": 2 * 52, "embedding": 2 * 788, "gates": 2 * 8, "queues": 4 * 3,
        "activations": 2 * 3 * 20,
    }  # fmt: skip
    all_tasks = tiny_accelerator(gates="all_tasks")
    assert on_chip_bytes(TINY, all_tasks, "reordered", tasks=3)["gates"] == 3 * 16


def test_dsp_slices_of_a_multiplier() -> None:
    assert [dsp_per_mac(*bits) for bits in ((8, 8), (4, 8), (8, 16), (16, 16), (16, 32), (32, 32))] == [
        0.5, 0.5, 1, 1, 2, 4,
    ]  # fmt: skip


def test_blocks_of_memory_by_hand() -> None:
    # A port of 128 bits makes columns of 2 blocks; 64 KiB are 4096 words: 8 BRAM36 deep, or one URAM.
    hw = EDGE_MOE.changed(weights={"buffer_bytes": 65536}, bits={"activations": 16})
    embedding = 2 * -(-(345_216 * 8 // 128) // 512)
    small = 3 * 2  # vectors of 5 KiB, a gate of 6 KiB, queues of 1 KiB: a column each
    found = resources(PUBLISHED["cityscapes-tiny"], hw, on=board("zcu102"))
    assert (found.dsp, found.bram36, found.uram) == (256 + 32, 2 * 16 + embedding + small, 0)
    with_uram = resources(PUBLISHED["cityscapes-tiny"], hw, on=board("kv260"))
    assert (with_uram.bram36, with_uram.uram) == (small, 2 * 2 + 2 * 6)
    assert with_uram.bram36_equivalent == small + 8 * 16


def test_edge_moe_fits_its_board_and_m3vit_s_does_not() -> None:
    zcu104 = board("zcu104")
    check_fits(resources(PUBLISHED["cityscapes-tiny"], EDGE_MOE), board("zcu102"))
    found = resources(PUBLISHED["nyud-small"], M3VIT)
    assert found.dsp == 1536 <= zcu104.dsp
    # Its parameters alone are more than all memory blocks of the board hold.
    bits = 36 * 1024 * (zcu104.bram36 + 8 * zcu104.uram)
    assert parameter_memory(PUBLISHED["nyud-small"], M3VIT, "reordered") * 8 > bits
    excess = found.bram36 - 312
    with pytest.raises(UserError, match=rf"ZCU104 .*: it needs {found.bram36} BRAM36 of 312 \({excess} too many\)"):
        check_fits(found, zcu104)
    with pytest.raises(UserError, match=r"2000 DSP of 1248 \(752 too many\), 65 URAM of 64 \(1 too many\)"):
        check_fits(Resources(2000, 1, 65, {}), board("kv260"))
    assert (board("zcu102").bram36, board("zcu102").uram) == (912, 0)


# ---- search -------------------------------------------------------------------------------------------------------


def test_search_finds_the_front() -> None:
    found = explore_designs(
        TINY, tiny_accelerator(), board("zcu104"), [TINY_FRAME],
        linear=((1, 1), (4, 4), (64, 64)), queries=(1, 2), buffers=((1, 1024), (2, 1024)),
    )  # fmt: skip
    assert (len(found.designs), found.too_large) == (8, 4)  # 4096 MACs are more than the board's DSPs
    costs = [design.costs for design in found.designs]
    for design in found.front:
        assert not any(all(a <= b for a, b in zip(c, design.costs, strict=True)) and c != design.costs for c in costs)
    assert min(costs) in [design.costs for design in found.front]
    assert found.front[0].results().kind == "modelled"
    with pytest.raises(UserError, match=r"does not fit AMD .*ZCU104.*4100 DSP of 1728 \(2372 too many\)"):
        explore_designs(TINY, tiny_accelerator(), board("zcu104"), [TINY_FRAME], linear=((64, 64),), queries=(1,))
    with pytest.raises(UserError, match="nothing to try"):
        explore_designs(TINY, tiny_accelerator(), board("zcu104"), [TINY_FRAME], linear=())


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)), max_size=20))
def test_a_front_holds_what_nothing_beats(costs: list[tuple[int, int, int]]) -> None:
    designs = [Design(M3VIT, ms, Resources(dsp, bram, 0, {})) for ms, dsp, bram in costs]
    front = [design.costs for design in pareto(designs)]
    beaten = {c for c in costs if any(o != c and all(a <= b for a, b in zip(o, c, strict=True)) for o in costs)}
    assert front == sorted(set(costs) - beaten)


# ---- pictures -----------------------------------------------------------------------------------------------------


def test_chrome_trace_holds_every_span_in_microseconds(tmp_path: Path) -> None:
    found = simulate(TINY, tiny_accelerator(), "reordered", [TINY_FRAME])
    write_chrome_trace(found, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    work = [event for event in events if event["ph"] == "X"]
    assert len(work) == len(found.spans) + sum(span.waited > 0 for span in found.spans)
    assert max(event["ts"] + event["dur"] for event in work) == pytest.approx(found.ms * 1e3)
    by_name = {(event["args"]["layer"], event["name"], event["cat"]): event for event in work}
    qkv = by_name["block 0", "qkv", "linear"]
    assert (qkv["ts"], qkv["dur"], qkv["args"]["task"]) == (pytest.approx(1.15), pytest.approx(0.09), "task")
    assert sum(event["dur"] for event in work if event["cat"] == "stall") == pytest.approx(found.stall / 100)
    names = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
    assert len(names) == len(ROWS) == len({event["tid"] for event in events if event["ph"] == "M"}) - 1
    assert {event["ph"] for event in events} == {"M", "X", "C"}
    assert chrome_trace(found)["otherData"]["kind"] == "modelled"


def test_timeline_shows_units_and_memory() -> None:
    found = simulate(TINY, tiny_accelerator(), "reordered", [TINY_FRAME])
    figure = timeline_figure(found)
    upper, lower = figure.axes
    attention = upper.collections[ROWS.index("attention")]
    widths = [path.vertices[:, 0].max() - path.vertices[:, 0].min() for path in attention.get_paths()]
    assert sum(widths) * 1e5 == pytest.approx(found.busy("attention"))
    assert lower.get_xlim() == (0, pytest.approx(found.ms))
    assert "modelled" in lower.get_xlabel()
    part = timeline_figure(found, "block 1", "block 1")
    assert part.axes[1].get_xlim()[0] * 1e5 == pytest.approx(96 + 115)
    assert timeline(found).startswith("<svg")
    with pytest.raises(UserError, match="no layer 'block 7'; known: embed, block 0, block 1"):
        timeline_figure(found, "block 7")
    with pytest.raises(UserError, match="comes after"):
        timeline_figure(found, "block 1", "embed")


def test_results_are_json() -> None:
    found = simulate(TINY, tiny_accelerator(), "cache", [TINY_FRAME]).results().to_dict()
    assert json.loads(json.dumps(found)) == found
    assert (found["kind"], found["expert_misses"], len(found["layers"])) == ("modelled", 3, 3)
    assert found["stall_cycles"] == sum(layer["stall_cycles"] for layer in found["layers"])
