"""The accelerator that has the engine: one law of cycles for the model, the closed form and the Verilog."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from testkit import rtl_samples
from testkit.fpga_samples import TINY, TINY_FRAME, tiny_accelerator

from mtlc.errors import UserError
from mtlc.hw.fpga.accelerator import Accelerator, accelerator
from mtlc.hw.fpga.design_search import explore_designs
from mtlc.hw.fpga.event_simulation import Simulation, simulate
from mtlc.hw.fpga.resources import board, check_fits, engine_of, on_chip_bytes, resources
from mtlc.hw.fpga.schedule import schedule
from mtlc.hw.fpga.switching import SwitchCost, switch_costs
from mtlc.hw.routing.moe_vit_shape import PUBLISHED, Block, MoeVit, from_program
from mtlc.hw.routing.routing_trace import Frame, record, synthetic
from mtlc.hw.rtl.cycles import cycles, tile_times
from mtlc.hw.rtl.engine import Engine
from mtlc.hw.rtl.export_experts import export_experts, quantised_layers
from mtlc.hw.rtl.exported import read_exported, run_layer
from mtlc.zoo.dense import to_tensors
from mtlc.zoo.scenes import render

ENGINE = accelerator("mtlc-engine-zcu104")


def eight_by_eight(port: int = 8) -> Accelerator:
    return ENGINE.changed(
        engine={"rows": 8, "columns": 8}, linear={"outputs": 8, "inputs": 8}, ddr={"weight_port_bytes": port}
    )


def expert_cycles(found: Simulation, layer: str) -> int:
    """Cycles from a layer's first expert's start to the last drain: what the linear unit worked, and waited for."""
    spans = [span for span in found.spans if span.layer == layer and span.unit == "linear"]
    first = next(i for i, span in enumerate(spans) if span.name.startswith("expert"))
    return spans[-1].end - (spans[first].start - spans[first].waited)


def test_the_model_takes_as_long_as_the_verilog(verilated: Path, tmp_path: Path) -> None:
    """Extracted layers of the shipped network on a real frame: the event simulation, Verilator and the closed form."""
    images = to_tensors({"image": render(9, 64, seed=1)["image"]})["image"]
    program = rtl_samples.shipped(images)
    layers = quantised_layers(program, "depth", {"image": images[:8]}, {"image": images[8:]})
    export_experts(tmp_path / "experts", "depth", layers, (8, 8), 20.0, {})
    exported = read_exported(tmp_path / "experts")
    network, trace = from_program(program), record(program, images[8:])
    found = simulate(network, eight_by_eight(), "reordered", trace.sequence(["depth"]))
    for index, block in enumerate(network.moe_blocks):
        counted = run_layer(exported, index, 8.0, verilated).cycles
        modelled = expert_cycles(found, f"block {block}")
        assert counted > 50_000
        assert modelled == pytest.approx(counted, rel=0.02)  # what is asked for
        assert modelled == counted  # what holds


def test_every_linear_layer_is_a_run_of_the_engine() -> None:
    hw, shape = eight_by_eight(4), PUBLISHED["cityscapes-tiny"]
    found = simulate(shape, hw, "dense")
    engine, twin = Engine(8, 8), shape.dense()
    linear = cycles(engine, twin.patch_inputs, [192], [128], 4)
    for block in twin.blocks:
        for outputs, inputs in ((3 * 192, 192), (192, 192), (block.hidden, 192), (192, block.hidden)):
            linear += cycles(engine, inputs, [outputs], [129], 4)
    assert found.busy("linear") + found.stall == linear
    assert found.cycles == linear + found.busy("attention") + found.busy("vector")
    assert found.peak_weight_bytes <= 2 * (768 + 7) * 8


def test_tiles_explain_the_cycles() -> None:
    engine, queues = Engine(8, 8), [5, 0, 20, 9]
    tiles, taken = tile_times(engine, 40, [20] * 4, queues, 5.0)
    assert [(one.expert, one.tile) for one in tiles] == [(e, t) for e in (0, 2, 3) for t in range(3)]
    assert taken == cycles(engine, 40, [20] * 4, queues, 5.0) > tiles[-1].end
    assert [one.end - one.start for one in tiles] == [-(-queues[one.expert] // 8) * 8 * 5 for one in tiles]
    for before, one in itertools.pairwise(tiles):
        assert before.load < before.whole <= one.load < one.whole < one.start
        assert before.end <= one.start
    assert all(one.load > other.end for other, one in zip(tiles, tiles[2:], strict=False))  # two banks


def test_a_frame_is_the_sum_of_its_parts() -> None:
    shape = PUBLISHED["cityscapes-tiny"]
    found = simulate(shape, ENGINE, "reordered", synthetic(shape).sequence(["task"]))
    assert found.cycles == sum(found.busy(unit) for unit in ("linear", "attention", "vector", "gate")) + found.stall
    assert found.ddr_bytes == sum(span.size for span in found.spans if span.unit == "ddr")
    ports = sorted((span.start, span.end) for span in found.spans if span.unit == "ddr")
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(ports))  # one port
    times = [cycle for cycle, _ in found.occupancy]
    assert times == sorted(times)
    assert found.occupancy[-1][1] == 0
    trace = synthetic(shape, ("a", "b"), skew=1.0)
    assert set(switch_costs(shape, ENGINE, trace).values()) == {SwitchCost(0, 0)}
    assert set(switch_costs(shape, ENGINE.changed(gates="current_task"), trace).values()) != {SwitchCost(0, 0)}


def test_what_the_engine_takes_of_its_board() -> None:
    """An element, two multipliers of a column's requantisation and one for the address: as yosys counts 16 x 16."""
    shape = PUBLISHED["cityscapes-tiny"]
    found = resources(shape, ENGINE)
    assert found.dsp == (256 + 2 * 16 + 1) + 16 * 16 // 2
    check_fits(found, board("zcu104"))
    engine = engine_of(shape, ENGINE)
    assert engine == Engine(16, 16, 2048, 1 << 17, 2048)  # 129 tokens of 768 hidden features
    held = on_chip_bytes(shape, ENGINE, "reordered")
    assert (held["token_memory"], held["weights"]) == (1 << 17, 2 * 32_880)


def test_the_search_tries_arrays_of_the_engine() -> None:
    shape = PUBLISHED["cityscapes-tiny"]
    frames = synthetic(shape).sequence(["task"])
    found = explore_designs(shape, ENGINE, board("zcu104"), frames, linear=((8, 8), (16, 16)), queries=(8,))
    assert [(one.accelerator.engine.rows, one.resources.dsp) for one in found.designs if one.accelerator.engine] == [
        (8, 81 + 64), (16, 289 + 64),
    ]  # fmt: skip
    assert found.designs[1].ms < found.designs[0].ms


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"linear": {"outputs": 8}}, r"\[linear\] has other multipliers than \[engine\]"),
        ({"bits": {"weights": 16}}, r"\[bits\] the engine computes with 8 bits"),
        ({"weights": {"prefetch": True}}, r"\[weights\] prefetch: the engine streams"),
        ({"techniques": {"gelu_table": False}}, r"\[techniques\] and \[separate\] say nothing of the engine"),
    ],
)
def test_what_an_engine_does_not_go_with(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ENGINE.changed(**change)


def test_it_keeps_no_experts() -> None:
    assert (ENGINE.policies, tiny_accelerator().policies) == (
        ("dense", "reordered"), ("dense", "cache", "resident", "reordered"),
    )  # fmt: skip
    with pytest.raises(UserError, match="streams its weights and keeps no expert; use dense or reordered"):
        simulate(TINY, ENGINE, "cache", [TINY_FRAME])


# ---- experts that are gone or merged ------------------------------------------------------------------------------


def test_experts_that_are_gone_are_not_loaded() -> None:
    """Six experts of which two are left, and three share one set of parameters."""
    block = Block(4, 4, 6, 2, rows=(0, -1, 0, 1, -1, 0))
    shape = MoeVit(3, 4, 1, 192, (Block(4, 16), block), 4)
    assert (block.stored, Block(4, 4, 6, 2).stored) == (2, 6)
    route = np.array([[0, 2], [3, -1], [5, 3]])
    np.testing.assert_array_equal(block.by_rows(route), [[0, -1], [1, -1], [0, 1]])
    frame = Frame("task", (route,))
    loads = {
        policy: [
            load.name
            for load in schedule(shape, tiny_accelerator(experts={"cache": 2}), policy, [frame]).loads  # type: ignore[arg-type]
            if load.name.startswith("expert")
        ]
        for policy in ("resident", "reordered", "cache")
    }  # fmt: skip
    assert loads["resident"] == loads["reordered"] == ["expert 0", "expert 1"]
    assert loads["cache"] == ["expert 0", "expert 1"]
    # A buffer of 64 bytes, and both matrices of each expert that stays: 2 · 16 weights of 16 bits.
    hw, whole = tiny_accelerator(weights={"buffers": 1, "buffer_bytes": 64}), (Block(4, 16), Block(4, 4, 6, 2))
    assert on_chip_bytes(shape, hw, "resident")["weights"] == 64 + 2 * 64
    assert on_chip_bytes(MoeVit(3, 4, 1, 192, whole, 4), hw, "resident")["weights"] == 64 + 6 * 64


def test_an_extracted_program_says_which_experts_are_left() -> None:
    network = from_program(rtl_samples.network())
    assert [network.blocks[i].rows for i in network.moe_blocks] == [(0, -1, 1, -1, -1, 2), (), ()]
    assert [network.blocks[i].stored for i in network.moe_blocks] == [3, 6, 6]
