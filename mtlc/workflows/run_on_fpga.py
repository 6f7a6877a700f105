"""Simulates a run's network before and after compression on the FPGA accelerators that its report names."""

from __future__ import annotations

from mtlc.errors import UserError
from mtlc.hw.devices.catalogue import device
from mtlc.hw.fpga.accelerator import Accelerator, accelerator, accelerators
from mtlc.hw.fpga.policy_costs import RoutedNetwork, policy_costs, switching
from mtlc.hw.fpga.resources import board
from mtlc.hw.routing.moe_vit_shape import from_program
from mtlc.hw.routing.routing_trace import RoutingTrace, record
from mtlc.log import Log, silent
from mtlc.moe.layers import moe_layers
from mtlc.program.program import Program
from mtlc.results.fpga import FpgaComparison, FpgaSide
from mtlc.workflows.opened_job import Opened, calibration_batch

ENGINE = "mtlc-engine-zcu104"
FRAMES = 4
"""Calibration samples whose routing is recorded."""
PIXELS = 400
"""Width of the timeline in the report: what lies closer is stored as one bar."""


def fpga_results(opened: Opened, compressed: Program, log: Log = silent) -> list[FpgaComparison] | None:
    """For each FPGA among the job's ``[report] devices`` and each accelerator described for it, before and after.

    A board that no accelerator is described for gets the engine of `mtlc.hw.rtl`. Both networks run the tasks of the
    compressed one on the same calibration samples. None where no device is an FPGA, or the network is none that the
    model knows.
    """
    names = [opened.job.resolve_device(name) for name in opened.job.file.report.devices]
    boards = [name for name in names if "dsp" in device(name).resources]
    if not boards or not moe_layers(opened.program.module):
        return None
    programs = {"before": opened.program.restricted(compressed.task_names), "after": compressed}
    try:
        shapes = {side: from_program(program) for side, program in programs.items()}
    except UserError as error:
        log(f"no FPGA in the report: {error}")
        return None
    log("simulating the FPGA before and after, with recorded routing")
    batch = calibration_batch(opened, 0, min(FRAMES, len(opened.splits.calibration)))
    images = list(batch[opened.program.inputs[0]])
    routed = {side: RoutedNetwork(shapes[side], record(program, images)) for side, program in programs.items()}
    found = []
    for name in boards:
        for hw in accelerators_of(name):
            try:
                found.append(_compare(name, hw, routed))
            except UserError as error:  # such as a buffer that does not hold one output of this network
                log(f"{hw.title}: not in the report: {error}")
    return found


def accelerators_of(name: str) -> list[Accelerator]:
    """The shipped accelerators of a board that are for reports; where there is none the engine, moved to it."""
    own = [found for found in map(accelerator, accelerators()) if found.board == name and found.in_reports]
    return own or [accelerator(ENGINE).changed(board=name, title=f"mtlc's INT8 engine on {board(name).title}")]


def _compare(name: str, hw: Accelerator, routed: dict[str, RoutedNetwork]) -> FpgaComparison:
    from mtlc.report.figures.fpga_timeline import timeline_data

    there = board(name)
    sides = {
        side: FpgaSide(
            policies=[policy_costs(one, hw, policy, there) for policy in hw.policies],
            switching=switching(one, hw, "reordered"),
        )
        for side, one in routed.items()
    }
    after = routed["after"]
    task = after.trace.tasks[0]
    frame = RoutingTrace({task: after.trace.frames[task][:1]}, after.trace.source)
    shown = RoutedNetwork(after.network, frame).run(hw, "reordered", task)
    return FpgaComparison(
        device=name,
        board=there.title,
        accelerator=hw.title,
        clock_mhz=hw.clock_mhz,
        clock="assumed",
        kind=after.kind,
        routing=after.trace.source,
        before=sides["before"],
        after=sides["after"],
        timeline=timeline_data(shown, pixels=PIXELS, task=task),
    )
