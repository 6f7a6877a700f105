"""What a run says of FPGAs: the network before and after on the accelerators of a board, with recorded routing."""

from __future__ import annotations

from typing import Any

from mtlc.errors import UserError
from mtlc.hw.devices.catalogue import device
from mtlc.hw.fpga.accelerator import Accelerator, accelerator, accelerators
from mtlc.hw.fpga.policy_costs import Case, policy_costs, switching
from mtlc.hw.fpga.resources import board
from mtlc.hw.routing.moe_vit_shape import from_program
from mtlc.hw.routing.routing_trace import RoutingTrace, record
from mtlc.log import Log, silent
from mtlc.moe.layers import moe_layers
from mtlc.program.program import Program
from mtlc.workflows.opened_job import Opened, calibration_batch

ENGINE = "mtlc-engine-zcu104"
FRAMES = 4
PIXELS = 400


def fpga_results(opened: Opened, compressed: Program, log: Log = silent) -> list[dict[str, Any]] | None:
    """For each FPGA among the job's ``[report] devices`` and each accelerator described for it, before and after.

    A board that no accelerator is described for gets the engine of `mtlc.hw.rtl`. Both networks run the tasks of the compressed
    one on the same calibration samples. None where no device is an FPGA, or the network is none that the model knows.
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
    cases = {side: Case(shapes[side], record(program, images)) for side, program in programs.items()}
    found = []
    for name in boards:
        for hw in described(name):
            try:
                found.append(_one(name, hw, cases))
            except UserError as error:  # such as a buffer that does not hold one output of this network
                log(f"{hw.title}: not in the report: {error}")
    return found


def described(name: str) -> list[Accelerator]:
    """The shipped accelerators of a board; where there is none the engine, moved to it."""
    own = [found for found in map(accelerator, accelerators()) if found.board == name]
    return own or [accelerator(ENGINE).changed(board=name, title=f"mtlc's INT8 engine on {board(name).title}")]


def _one(name: str, hw: Accelerator, cases: dict[str, Case]) -> dict[str, Any]:
    from mtlc.report.figures.fpga_timeline import timeline_data

    there = board(name)
    sides = {}
    for side, case in cases.items():
        costs = [policy_costs(case, hw, policy, there) for policy in hw.policies]
        sides[side] = {"policies": costs, "switching": switching(case, hw, "reordered")}
    case = cases["after"]
    task = case.trace.tasks[0]
    frame = RoutingTrace({task: case.trace.frames[task][:1]}, case.trace.source)
    shown = Case(case.network, frame).run(hw, "reordered", task)
    return {
        "device": name, "board": there.title, "accelerator": hw.title, "clock_mhz": hw.clock_mhz, "clock": "assumed",
        "kind": case.kind, "routing": case.trace.source, **sides,
        "timeline": {"task": task, **timeline_data(shown, pixels=PIXELS)},
    }  # fmt: skip
