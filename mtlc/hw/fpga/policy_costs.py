"""What a network costs on an accelerator under each policy, as plain values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mtlc.errors import UserError
from mtlc.hw.fpga.accelerator import Accelerator, Policy
from mtlc.hw.fpga.event_simulation import Kind, Simulation, simulate
from mtlc.hw.fpga.resources import Board, check_fits, resources
from mtlc.hw.fpga.schedule import UNITS
from mtlc.hw.fpga.switching import switch_costs
from mtlc.hw.routing.moe_vit_shape import MoeVit
from mtlc.hw.routing.routing_trace import RoutingTrace


@dataclass(frozen=True)
class Case:
    """A network and the frames that it runs."""

    network: MoeVit
    trace: RoutingTrace

    @property
    def kind(self) -> Kind:
        """``"simulated"`` with routing that was recorded, ``"modelled"`` with routing that was drawn."""
        return "simulated" if self.trace.source.startswith("recorded") else "modelled"

    def run(self, accelerator: Accelerator, policy: Policy, task: str) -> Simulation:
        """The frames of one task, one after another."""
        frames = self.trace.frames[task]
        return simulate(self.network, accelerator, policy, frames, dense_frames=len(frames), kind=self.kind)


def policy_costs(case: Case, accelerator: Accelerator, policy: Policy, board: Board) -> dict[str, Any]:
    """Means over all frames of all tasks, in ms and bytes of a frame; peaks; what it takes of the board, and whether it fits.

    ``parts_ms`` are the units' work; they and ``stall_ms`` add up to ``ms``.
    """
    runs = {task: case.run(accelerator, policy, task) for task in case.trace.tasks}
    frames = sum(len(run.frame_cycles) for run in runs.values())
    found = list(runs.values())
    places = sum(run.places for run in found)
    return {
        "policy": policy, "kind": case.kind, "frames": frames, "ms": sum(run.ms for run in found) / frames,
        "cycles": sum(run.cycles for run in found) / frames,
        "tasks_ms": {task: run.ms / len(run.frame_cycles) for task, run in runs.items()},
        "parts_ms": {unit: accelerator.ms(sum(run.busy(unit) for run in found)) / frames for unit in UNITS},
        "stall_ms": accelerator.ms(sum(run.stall for run in found)) / frames,
        "ddr_port_ms": accelerator.ms(sum(run.busy("ddr") for run in found)) / frames,
        "ddr_bytes": sum(run.ddr_bytes for run in found) / frames,
        "streamed_bytes": sum(run.activation_bytes for run in found) / frames,
        "peak": {
            "weight_bytes": max(run.peak_weight_bytes for run in found),
            "weight_buffers": max(run.peak_buffers for run in found),
            "queue_places": max(run.queue_places for run in found),
        },
        "miss_rate": sum(run.misses for run in found) / places if policy == "cache" and places else None,
        "resources": used(case.network, accelerator, policy, board, len(runs)),
    }  # fmt: skip


def used(network: MoeVit, accelerator: Accelerator, policy: Policy, board: Board, tasks: int = 1) -> dict[str, Any]:
    """``dsp``, ``bram36`` and ``uram`` used and there, the bytes on the chip by what they hold, and ``problem``: None if it fits."""
    found = resources(network, accelerator, policy, board, tasks)
    try:
        check_fits(found, board)
        problem = None
    except UserError as error:
        problem = str(error)
    return {
        "board": board.title, "problem": problem, "bytes_on_chip": dict(found.bytes_on_chip),
        **{name: {"used": getattr(found, name), "total": getattr(board, name)} for name in ("dsp", "bram36", "uram")},
    }  # fmt: skip


def chosen_policies(
    case: Case, accelerator: Accelerator, board: Board, asked: Sequence[Policy] = (), anyway: bool = False
) -> tuple[list[Policy], dict[str, str]]:
    """The policies to run, and why others are left out: those asked for, or all that the accelerator has and the board holds.

    `anyway` takes them whether they fit or not. Raises `UserError` where one that was asked for does not fit, or none does.
    """
    known = [policy for policy in accelerator.policies if case.network.moe_blocks or policy == "dense"]
    taken: list[Policy] = []
    left: dict[str, str] = {}
    for policy in asked or known:
        problem = used(case.network, accelerator, policy, board, len(case.trace.tasks))["problem"]
        if problem is None or anyway:
            taken.append(policy)
        elif asked:
            raise UserError(f"policy {policy!r}: {problem}")
        else:
            left[policy] = problem
    if not taken:
        raise UserError(f"policy {known[-1]!r}: {left[known[-1]]}")
    return taken, left


def switching(case: Case, accelerator: Accelerator, policy: Policy) -> dict[str, Any] | None:
    """The worst of all pairs of tasks: cycles and bytes that a frame costs more after one of another task; None for one task."""
    if len(case.trace.tasks) < 2 or policy == "dense":
        return None
    costs = switch_costs(case.network, accelerator, case.trace, policy)
    return {
        "policy": policy, "pairs": len(costs), "extra_cycles": max(one.cycles for one in costs.values()),
        "extra_bytes": max(one.weight_bytes for one in costs.values()),
    }  # fmt: skip
