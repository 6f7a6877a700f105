"""A network and an accelerator small enough to time by hand, and hypothesis strategies around them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from mtlc.hw.fpga.accelerator import Accelerator
from mtlc.hw.routing.moe_vit_shape import MoeVit, moe_vit
from mtlc.hw.routing.routing_trace import Frame, synthetic

# Three tokens of width 4; a perceptron 4 → 16 → 4, then two experts 4 → 4 → 4, one for each token.
TINY = moe_vit((8, 16), 4, 1, blocks=2, patch=8, experts=2, top_k=1)
TINY_FRAME = Frame("task", (np.array([[0], [1], [0]]),))


def tiny_accelerator(**changes: object) -> Accelerator:
    """16 MACs a cycle, 8 bytes a cycle, no prefetch: every cycle can be counted."""
    base = Accelerator.model_validate(
        {
            "title": "tiny", "board": "zcu104", "clock_mhz": 100,
            "linear": {"outputs": 4, "inputs": 4}, "attention": {"queries": 1, "inputs": 4},
            "weights": {"buffers": 2, "buffer_bytes": 1024, "load_unit": "expert", "prefetch": False},
            "ddr": {"bandwidth_gbs": 0.8, "weight_port_bytes": 8},
        }
    )  # fmt: skip
    return base.changed(**changes) if changes else base


@st.composite
def cases(draw: st.DrawFn) -> tuple[MoeVit, Accelerator, list[Frame]]:
    """A small network, an accelerator of any kind, and one to three frames of random routing."""
    experts = draw(st.integers(1, 6))
    top_k = draw(st.integers(1, min(experts, 3)))
    network = moe_vit(
        (8 * draw(st.integers(1, 3)), 8 * draw(st.integers(1, 3))), 4 * draw(st.integers(1, 3)), 2,
        blocks=draw(st.integers(2, 4)), patch=8, experts=experts, top_k=top_k, expert_width=draw(st.integers(1, 9)),
    )  # fmt: skip
    accelerator = tiny_accelerator(
        linear={"outputs": draw(st.integers(1, 5)), "inputs": draw(st.integers(1, 5))},
        attention={"queries": draw(st.integers(1, 4)), "inputs": draw(st.integers(1, 8))},
        weights={
            "buffers": draw(st.integers(1, 3)), "buffer_bytes": draw(st.sampled_from([128, 300, 2048])),
            "load_unit": draw(st.sampled_from(["matrix", "expert"])), "prefetch": draw(st.booleans()),
            "prefetch_first_expert": draw(st.booleans()),
        },
        experts={"cache": draw(st.integers(top_k, 7)), "lookup": draw(st.sampled_from(["in_order", "hits_first"]))},
        gates=draw(st.sampled_from(["streamed", "all_tasks", "current_task"])),
        vector={"cycles_per_element": draw(st.sampled_from([0.0, 0.7])), "function_cycles": 3},
        techniques={
            name: draw(st.booleans())
            for name in ("patch_reorder", "single_pass_softmax", "gelu_table", "attention_reorder")
        },
    )  # fmt: skip
    trace = synthetic(network, ("a", "b"), seed=draw(st.integers(0, 99)), skew=draw(st.sampled_from([0.0, 2.0])))
    return network, accelerator, trace.sequence(draw(st.lists(st.sampled_from("ab"), min_size=1, max_size=3)))
