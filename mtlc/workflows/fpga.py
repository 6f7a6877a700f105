"""Simulates a network on a described FPGA accelerator, and looks for better designs.

`simulate_network` is ``mtlc fpga simulate``, `search_designs` is ``mtlc fpga search``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mtlc.errors import UserError, nearest
from mtlc.files import atomic_file
from mtlc.hw.fpga import DEFAULT_ACCELERATOR
from mtlc.hw.fpga.accelerator import Policy, accelerator, accelerators
from mtlc.hw.fpga.policy_costs import RoutedNetwork, chosen_policies, policy_costs, switching
from mtlc.hw.fpga.resources import board as board_of
from mtlc.hw.routing.moe_vit_shape import PUBLISHED, from_program
from mtlc.hw.routing.routing_trace import load, record, synthetic
from mtlc.job.job import Job
from mtlc.log import Log, silent
from mtlc.results.fpga import DesignSearchResult, SimulationResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mtlc.hw.fpga.event_simulation import Simulation

FRAMES = 4
"""Frames of each task where nothing is said."""
_DRAWN_TASKS = ("task 1", "task 2")
"""Tasks of a published network, whose routes are drawn: two, so that switching the task has a cost."""
_PICTURES = (".svg", ".png", ".pdf")


def simulate_network(
    target: Path | Job, name: str = DEFAULT_ACCELERATOR, policies: Sequence[Policy] = (), *,
    job: Path | Job | None = None,
    trace: Path | None = None, frames: int | None = None, board: str | None = None, anyway: bool = False,
    timeline: Path | None = None, chrome_trace: Path | None = None, log: Log = silent,
) -> SimulationResult:  # fmt: skip
    """Simulate the network of `target` on the accelerator `name`.

    Args:
        target: a published name, a job, or a checkpoint with `job`.
        policies: how experts run; without any, all that fit the board.
        trace: a routing trace. Without one, `frames` calibration samples are routed for each task; for a published
            network routes are drawn.
        board: the device whose resources count; by default the accelerator's.
        anyway: run the policies whether they fit or not.
        timeline, chrome_trace: files to draw the last policy and the first task to.

    Raises `UserError` for what does not fit together, a trace of another network, and a design that the board cannot
    hold.
    """
    _check_ending(timeline, _PICTURES)
    _check_ending(chrome_trace, (".json",))
    hw = accelerator(name)
    for policy in policies:
        if policy not in hw.policies:
            raise UserError(f"--policy {policy}: {hw.title} can do {', '.join(hw.policies)}")
    there = board_of(board or hw.board)
    routed = routed_network(target, job, trace, frames, log)
    try:
        chosen, left_out = chosen_policies(routed, hw, there, policies, anyway)
    except UserError as error:
        fitting = accelerators_that_fit(routed, policies, board)
        hint = "; mtlc fpga search tries smaller arrays and buffers"
        if fitting:
            hint = f"; {_either([f'--accelerator {one}' for one in fitting])} fits"
        raise UserError(f"{error}; --anyway simulates it all the same{hint}") from None
    log(f"simulating {', '.join(chosen)}")
    costs = [policy_costs(routed, hw, policy, there) for policy in chosen]
    shown = chosen[-1]
    if timeline is not None or chrome_trace is not None:
        _draw(routed.run(hw, shown, routed.trace.tasks[0]), timeline, chrome_trace)
    return SimulationResult(
        kind=routed.kind,
        network=str(target),
        routing=routed.trace.source,
        accelerator=hw.title,
        clock_mhz=hw.clock_mhz,
        clock="assumed",
        board=there.title,
        policies=costs,
        left_out=left_out,
        switching=switching(routed, hw, shown),
        timeline=None if timeline is None else str(timeline),
        chrome_trace=None if chrome_trace is None else str(chrome_trace),
    )


def search_designs(
    target: Path | Job, name: str = DEFAULT_ACCELERATOR, policy: Policy = "reordered", *, job: Path | Job | None = None,
    trace: Path | None = None, frames: int | None = None, board: str | None = None, picture: Path | None = None,
    log: Log = silent,
) -> DesignSearchResult:  # fmt: skip
    """The Pareto front of latency, DSP slices and memory over arrays and buffers for `target` on a board.

    Other arguments are those of `simulate_network`. Raises `UserError` also where no design fits, by how much the
    nearest misses.
    """
    from mtlc.hw.fpga.design_search import explore_designs

    _check_ending(picture, _PICTURES)
    hw = accelerator(name)
    there = board_of(board or hw.board)
    routed = routed_network(target, job, trace, frames or 1, log)
    log("trying every array with every buffer")
    frames_of_one = routed.trace.frames[routed.trace.tasks[0]]
    try:
        found = explore_designs(routed.network, hw, there, frames_of_one, policy, kind=routed.kind)
    except UserError as error:
        fitting = [one for one in accelerators_that_fit(routed, (policy,), board) if one != name]
        hint = f"; start from {_either([f'--accelerator {one}' for one in fitting])}, which fits" if fitting else ""
        raise UserError(f"{error}{hint}") from None
    if picture is not None:
        from mtlc.report.figures.fpga_designs import front_figure

        _save(front_figure(found), picture)
    return DesignSearchResult(
        kind=routed.kind,
        network=str(target),
        routing=routed.trace.source,
        accelerator=hw.title,
        clock_mhz=hw.clock_mhz,
        clock="assumed",
        board=there.title,
        policy=policy,
        tried=len(found.designs) + found.too_large,
        too_large=found.too_large,
        front=[design.results() for design in found.front],
        picture=None if picture is None else str(picture),
    )


def routed_network(
    target: Path | Job, job: Path | Job | None, trace: Path | None, frames: int | None, log: Log
) -> RoutedNetwork:  # fmt: skip
    """The network of `target` with its frames: from a trace, recorded, or drawn. Raises `UserError`."""
    if str(target) in PUBLISHED:
        if job is not None:
            raise UserError(f"--job: {target} is a published shape, without weights or data")
        network = PUBLISHED[str(target)]
        routes = load(trace) if trace is not None else synthetic(network, _DRAWN_TASKS, frames=frames or 1)
    else:
        if isinstance(target, Path) and not target.exists():
            raise UserError(
                f"{target}: no such job or checkpoint, and no published network{nearest(str(target), PUBLISHED)}"
            )
        from mtlc.hw.routing.active_macs import check_trace
        from mtlc.workflows.opened_job import calibration_batch, open_target

        opened = open_target(target, job)
        network = from_program(opened.program)
        if trace is not None:
            routes = load(trace)
            check_trace(opened.program, routes)
        else:
            log("recording where the calibration samples' tokens go")
            batch = calibration_batch(opened, 0, min(frames or FRAMES, len(opened.splits.calibration)))
            routes = record(opened.program, list(batch[opened.program.inputs[0]]))
    routes.check(network)
    return RoutedNetwork(network, routes)


def accelerators_that_fit(routed: RoutedNetwork, policies: Sequence[Policy] = (), on: str | None = None) -> list[str]:
    """The accelerators that come with mtlc and hold the network under all of `policies`, or under any if none is named:
    on the board `on`, else each on its own. The default comes first.
    """
    found = []
    for name in sorted(accelerators(), key=lambda one: one != DEFAULT_ACCELERATOR):
        hw = accelerator(name)
        if any(policy not in hw.policies for policy in policies):
            continue
        try:
            chosen_policies(routed, hw, board_of(on or hw.board), policies)
        except UserError:  # too large, or a memory of it that does not hold one output of this network
            continue
        found.append(name)
    return found


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _check_ending(path: Path | None, endings: Sequence[str]) -> None:
    """Refuse a file whose ending says another format, before anything is computed for it."""
    if path is not None and path.suffix not in endings:
        raise UserError(f"{path}: must end in {' or '.join(endings)}")


def _draw(simulation: Simulation, timeline: Path | None, chrome_trace: Path | None) -> None:
    from mtlc.report.figures.fpga_timeline import timeline_figure, write_chrome_trace

    if timeline is not None:
        _save(timeline_figure(simulation), timeline)
    if chrome_trace is not None:
        write_chrome_trace(simulation, chrome_trace)


def _save(figure: Figure, path: Path) -> None:
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:])
