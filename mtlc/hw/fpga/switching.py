"""Works out what changing the task between frames costs on the accelerator, beside staying with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtlc.hw.fpga.accelerator import Accelerator, Policy
from mtlc.hw.fpga.event_simulation import simulate
from mtlc.hw.routing.moe_vit_shape import MoeVit
from mtlc.hw.routing.routing_trace import Frame, RoutingTrace


@dataclass(frozen=True)
class SwitchCost:
    """Cycles and bytes of a frame after one of another task, less those of the same frame after one of its own task."""

    cycles: int
    weight_bytes: int


def switch_costs(
    network: MoeVit, accelerator: Accelerator, trace: RoutingTrace, policy: Policy = "reordered"
) -> Mapping[tuple[str, str], SwitchCost]:
    """The cost of each switch, by (task before, task after), from the first frame of each task."""
    frames = {task: own[0] for task, own in trace.frames.items()}
    found = {}
    for after, frame in frames.items():
        cycles, size = _second(network, accelerator, policy, [frame, frame])
        for before, other in frames.items():
            if before != after:
                switched, moved = _second(network, accelerator, policy, [other, frame])
                found[before, after] = SwitchCost(switched - cycles, moved - size)
    return found


def _second(network: MoeVit, accelerator: Accelerator, policy: Policy, frames: Sequence[Frame]) -> tuple[int, int]:
    ran = simulate(network, accelerator, policy, frames)
    return ran.frame_cycles[1], sum(layer.ddr_bytes for layer in ran.layers if layer.frame == 1)
