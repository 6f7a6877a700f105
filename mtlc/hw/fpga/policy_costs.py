"""Adds up what a network costs on an accelerator under each policy: times, bytes, and what it takes of a board."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mtlc.errors import UserError
from mtlc.hw.fpga.accelerator import Accelerator, Policy
from mtlc.hw.fpga.event_simulation import Simulation, simulate
from mtlc.hw.fpga.resources import Board, check_fits, resources
from mtlc.hw.fpga.schedule import UNITS
from mtlc.hw.fpga.switching import switch_costs
from mtlc.hw.routing.moe_vit_shape import MoeVit
from mtlc.hw.routing.routing_trace import RoutingTrace
from mtlc.results.fpga import BoardShare, BoardUse, Kind, Peaks, PolicyCosts, TaskSwitch


@dataclass(frozen=True)
class RoutedNetwork:
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


def policy_costs(routed: RoutedNetwork, accelerator: Accelerator, policy: Policy, board: Board) -> PolicyCosts:
    """Means over all frames of all tasks; peaks; what it takes of the board, and whether it fits."""
    runs = {task: routed.run(accelerator, policy, task) for task in routed.trace.tasks}
    frames = sum(len(run.frame_cycles) for run in runs.values())
    found = list(runs.values())
    places = sum(run.places for run in found)
    return PolicyCosts(
        policy=policy,
        kind=routed.kind,
        frames=frames,
        ms=sum(run.ms for run in found) / frames,
        cycles=sum(run.cycles for run in found) / frames,
        tasks_ms={task: run.ms / len(run.frame_cycles) for task, run in runs.items()},
        parts_ms={unit: accelerator.ms(sum(run.busy(unit) for run in found)) / frames for unit in UNITS},
        stall_ms=accelerator.ms(sum(run.stall for run in found)) / frames,
        ddr_port_ms=accelerator.ms(sum(run.busy("ddr") for run in found)) / frames,
        ddr_bytes=sum(run.ddr_bytes for run in found) / frames,
        streamed_bytes=sum(run.activation_bytes for run in found) / frames,
        peak=Peaks(
            weight_bytes=max(run.peak_weight_bytes for run in found),
            weight_buffers=max(run.peak_buffers for run in found),
            queue_places=max(run.queue_places for run in found),
        ),
        miss_rate=sum(run.misses for run in found) / places if policy == "cache" and places else None,
        resources=board_use(routed.network, accelerator, policy, board, len(runs)),
    )


def board_use(network: MoeVit, accelerator: Accelerator, policy: Policy, board: Board, tasks: int = 1) -> BoardUse:
    """What the accelerator takes of the board, with the gates of so many tasks, and why it does not fit if so."""
    found = resources(network, accelerator, policy, board, tasks)
    try:
        check_fits(found, board)
        problem = None
    except UserError as error:
        problem = str(error)
    return BoardUse(
        board=board.title,
        problem=problem,
        bytes_on_chip=dict(found.bytes_on_chip),
        dsp=BoardShare(used=found.dsp, total=board.dsp),
        bram36=BoardShare(used=found.bram36, total=board.bram36),
        uram=BoardShare(used=found.uram, total=board.uram),
    )


def chosen_policies(
    routed: RoutedNetwork, accelerator: Accelerator, board: Board, asked: Sequence[Policy] = (), anyway: bool = False
) -> tuple[list[Policy], dict[str, str]]:
    """The policies to run, and why others are left out: those asked for, or all that fit accelerator and board.

    `anyway` takes them whether they fit or not. Raises `UserError` where one that was asked for does not fit, or none
    does.
    """
    known = [policy for policy in accelerator.policies if routed.network.moe_blocks or policy == "dense"]
    taken: list[Policy] = []
    left: dict[str, str] = {}
    for policy in asked or known:
        problem = board_use(routed.network, accelerator, policy, board, len(routed.trace.tasks)).problem
        if problem is None or anyway:
            taken.append(policy)
        elif asked:
            raise UserError(f"policy {policy!r}: {problem}")
        else:
            left[policy] = problem
    if not taken:
        raise UserError(f"policy {known[-1]!r}: {left[known[-1]]}")
    return taken, left


def switching(routed: RoutedNetwork, accelerator: Accelerator, policy: Policy) -> TaskSwitch | None:
    """The worst of all pairs of tasks: what a frame costs more after one of another task.

    None for one task, and for ``dense``, which has no gates to reload.
    """
    if len(routed.trace.tasks) < 2 or policy == "dense":
        return None
    costs = switch_costs(routed.network, accelerator, routed.trace, policy)
    return TaskSwitch(
        policy=policy,
        pairs=len(costs),
        extra_cycles=max(one.cycles for one in costs.values()),
        extra_bytes=max(one.weight_bytes for one in costs.values()),
    )
