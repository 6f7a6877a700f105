"""``mtlc fpga simulate`` and ``mtlc fpga search``: a network on an accelerator that is described, and better designs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlc.errors import UserError, nearest
from mtlc.files import atomic_file
from mtlc.hw.fpga.accelerator import Policy, accelerator
from mtlc.hw.fpga.policy_costs import Case, chosen_policies, policy_costs, switching
from mtlc.hw.fpga.resources import board as board_of
from mtlc.hw.routing.moe_vit_shape import PUBLISHED, from_program
from mtlc.hw.routing.routing_trace import load, record, synthetic
from mtlc.log import Log, silent

if TYPE_CHECKING:
    from mtlc.hw.fpga.design_search import DesignSearch
    from mtlc.hw.fpga.event_simulation import Simulation

FRAMES = 4
"""Frames of each task where nothing is said."""
_DRAWN = ("task 1", "task 2")
_PICTURES = (".svg", ".png", ".pdf")


def simulate(
    target: Path, name: str = "m3vit-zcu104", policies: Sequence[Policy] = (), *, job: Path | None = None,
    trace: Path | None = None, frames: int | None = None, board: str | None = None, anyway: bool = False,
    timeline: Path | None = None, chrome_trace: Path | None = None, log: Log = silent,
) -> dict[str, Any]:  # fmt: skip
    """The network of `target` (a published name, a job, or a checkpoint with `job`) on the accelerator `name`.

    `frames` calibration samples are routed for each task, unless `trace` has their routes; of a published network routes are
    drawn. Without `policies` all that fit the board run; `anyway` runs them whether they fit or not. Pictures are of the last policy and the first
    task. Raises `UserError` for what does not fit together, a trace of another network and a design that the board cannot hold.
    """
    for path, endings in ((timeline, _PICTURES), (chrome_trace, (".json",))):
        if path is not None and path.suffix not in endings:
            raise UserError(f"{path}: must end in {' or '.join(endings)}")
    hw = accelerator(name)
    for policy in policies:
        if policy not in hw.policies:
            raise UserError(f"--policy {policy}: {hw.title} can do {', '.join(hw.policies)}")
    there = board_of(board or hw.board)
    case = case_of(target, job, trace, frames, log)
    try:
        chosen, left = chosen_policies(case, hw, there, policies, anyway)
    except UserError as error:
        raise UserError(f"{error}; --anyway simulates it all the same, mtlc fpga search finds what fits") from None
    log(f"simulating {', '.join(chosen)}")
    found = [policy_costs(case, hw, policy, there) for policy in chosen]
    shown = chosen[-1]
    if timeline is not None or chrome_trace is not None:
        _draw(case.run(hw, shown, case.trace.tasks[0]), timeline, chrome_trace)
    return {
        "kind": case.kind, "network": str(target), "routing": case.trace.source, "accelerator": hw.title,
        "clock_mhz": hw.clock_mhz, "clock": "assumed", "board": there.title, "policies": found, "left_out": left,
        "switching": switching(case, hw, shown),
        "timeline": None if timeline is None else str(timeline),
        "chrome_trace": None if chrome_trace is None else str(chrome_trace),
    }  # fmt: skip


def search(
    target: Path, name: str = "m3vit-zcu104", policy: Policy = "reordered", *, job: Path | None = None,
    trace: Path | None = None, frames: int | None = None, board: str | None = None, picture: Path | None = None,
    log: Log = silent,
) -> dict[str, Any]:  # fmt: skip
    """The Pareto front of latency, DSP slices and memory over arrays and buffers for `target` on a board.

    Other arguments are those of `simulate`. Raises `UserError` also where no design fits, by how much the nearest misses.
    """
    from mtlc.hw.fpga.design_search import search as look

    if picture is not None and picture.suffix not in _PICTURES:
        raise UserError(f"{picture}: must end in {' or '.join(_PICTURES)}")
    hw = accelerator(name)
    there = board_of(board or hw.board)
    case = case_of(target, job, trace, frames or 1, log)
    log("trying every array with every buffer")
    found = look(case.network, hw, there, case.trace.frames[case.trace.tasks[0]], policy, kind=case.kind)
    if picture is not None:
        _draw_front(found, picture)
    return {
        "kind": case.kind, "network": str(target), "routing": case.trace.source, "accelerator": hw.title,
        "clock_mhz": hw.clock_mhz, "clock": "assumed", "board": there.title, "policy": policy,
        "tried": len(found.designs) + found.too_large, "too_large": found.too_large,
        "front": [design.results() for design in found.front], "picture": None if picture is None else str(picture),
    }  # fmt: skip


def case_of(target: Path, job: Path | None, trace: Path | None, frames: int | None, log: Log) -> Case:
    """The network and its frames. Raises `UserError`."""
    if str(target) in PUBLISHED:
        if job is not None:
            raise UserError(f"--job: {target} is a published shape, without weights or data")
        network = PUBLISHED[str(target)]
        routes = load(trace) if trace is not None else synthetic(network, _DRAWN, frames=frames or 1)
    else:
        if not target.exists():
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
    return Case(network, routes)


def _draw(found: Simulation, timeline: Path | None, chrome_trace: Path | None) -> None:
    from mtlc.report.figures.fpga_timeline import timeline_figure, write_chrome_trace

    if timeline is not None:
        figure = timeline_figure(found)
        with atomic_file(timeline) as temporary:
            figure.savefig(temporary, format=timeline.suffix[1:])
    if chrome_trace is not None:
        write_chrome_trace(found, chrome_trace)


def _draw_front(found: DesignSearch, picture: Path) -> None:
    from mtlc.report.figures.fpga_designs import front_figure

    figure = front_figure(found)
    with atomic_file(picture) as temporary:
        figure.savefig(temporary, format=picture.suffix[1:])
