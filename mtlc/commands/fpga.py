"""Reads the options of ``mtlc fpga`` and its verbs, and prints what they find for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtlc.commands.group import Front
from mtlc.commands.options import DEBUG, JSON, LOG_LEVEL, PATH, SET
from mtlc.commands.output import emit, listener
from mtlc.commands.overridden_job import target_with_overrides
from mtlc.commands.tables import count, identical_text, share, table
from mtlc.hw.fpga import DEFAULT_ACCELERATOR

if TYPE_CHECKING:
    from mtlc.results.fpga import DesignSearchResult, PolicyCosts, SimulationResult
    from mtlc.results.rtl import SynthesisResult, VerilogRun

DATA_JOB = click.option("--job", type=PATH, help="The job whose data and factory a checkpoint needs.")
ARRAY = click.option("--array", metavar="RxC", help="The array: rows x columns. Default: 8x8.")
TASK = click.option("--task", help="The task. Default: the only one.")
ACCELERATOR = click.option(
    "--accelerator", default=DEFAULT_ACCELERATOR, show_default=True, help="Its name, or a .toml file."
)
POLICY = click.Choice(("dense", "cache", "resident", "reordered"))
TRACE = click.option("--trace", type=PATH, help="A routing trace (.npz). Default: recorded on calibration samples.")
FRAMES = click.option("--frames", type=click.IntRange(1, 4096), help="Frames of each task. Default: 4; 1 to search.")
BOARD = click.option("--board", help="The device whose resources count, or its file. Default: the accelerator's.")


@click.group(cls=Front)
def fpga() -> None:
    """Simulate an accelerator, search its design, run exported experts on the Verilog, count its resources."""


@fpga.command()
@click.argument("network", type=PATH)
@ACCELERATOR
@click.option(
    "--policy", "policies", multiple=True, type=POLICY, help="May be given again. Default: all that fit the board."
)
@DATA_JOB
@SET
@TRACE
@FRAMES
@BOARD
@click.option("--anyway", is_flag=True, help="Simulate what does not fit the board, too.")
@click.option("--timeline", type=PATH, help="Picture of the last policy, .svg, .png or .pdf.")
@click.option("--chrome-trace", type=PATH, help="The same as a .json for Perfetto.")
@JSON
@DEBUG
@LOG_LEVEL
def simulate(
    network: Path,
    accelerator: str,
    job: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
    log_level: str,
    **options: Any,
) -> None:
    """Simulate NETWORK on an accelerator: a job, a checkpoint (with --job), pascal-small, nyud-small or
    cityscapes-tiny.
    """
    from mtlc.workflows.fpga import simulate_network

    target, job_of = target_with_overrides(network, job, overrides)
    result = simulate_network(target, accelerator, job=job_of, log=listener(log_level)["log"], **options)
    emit(as_json, result, simulation_text)


@fpga.command()
@click.argument("network", type=PATH)
@ACCELERATOR
@click.option("--policy", type=POLICY, default="reordered", show_default=True)
@DATA_JOB
@SET
@TRACE
@FRAMES
@BOARD
@click.option("--picture", type=PATH, help="The designs over DSP slices, .svg, .png or .pdf.")
@JSON
@DEBUG
@LOG_LEVEL
def search(
    network: Path,
    accelerator: str,
    job: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
    log_level: str,
    **options: Any,
) -> None:
    """Try arrays and buffers for NETWORK on a board: the Pareto front of latency, DSP slices and memory."""
    from mtlc.workflows.fpga import search_designs

    target, job_of = target_with_overrides(network, job, overrides)
    result = search_designs(target, accelerator, job=job_of, log=listener(log_level)["log"], **options)
    emit(as_json, result, search_text)


@fpga.command()
@click.argument("folder", type=PATH)
@click.option(
    "--layer", "layers", multiple=True, metavar="PATH", help="A layer to run; may be given again. Default: all."
)
@click.option(
    "--bytes-per-cycle", type=click.FloatRange(0, min_open=True),
    help="Limit of the weight port. Default: a beat a cycle.",
)  # fmt: skip
@JSON
@DEBUG
@LOG_LEVEL
def rtl(folder: Path, layers: tuple[str, ...], bytes_per_cycle: float | None, as_json: bool, log_level: str) -> None:
    """Run FOLDER, which `mtlc export --format fpga` wrote, on the engine's Verilog and compare every output
    (Verilator).
    """
    from mtlc.workflows.verilog import run_exported, verdict

    result = run_exported(folder, layers, bytes_per_cycle, log=listener(log_level)["log"])
    emit(as_json, result, rtl_text)
    verdict(result)


@fpga.command()
@ARRAY
@click.option("--board", default="zcu104", show_default=True, help="The device whose resources count, or its file.")
@click.option("--inferred", is_flag=True, help="Let yosys choose the DSPs instead of instantiating them.")
@click.option("--timeout", type=click.FloatRange(1), default=1800, show_default=True, help="Seconds to give up after.")
@JSON
@DEBUG
@LOG_LEVEL
def synthesise(
    array: str | None, board: str, inferred: bool, timeout: float, as_json: bool, log_level: str
) -> None:  # fmt: skip
    """Count what the engine takes of an FPGA (yosys). A minute or more for 8x8; large arrays take far longer, and
    gigabytes.
    """
    from mtlc.workflows.verilog import synthesise as count

    emit(as_json, count(array, board, inferred, timeout, log=listener(log_level)["log"]), synthesis_text)


def rtl_text(result: VerilogRun) -> str:
    """Each layer's comparison and cycles."""
    rows = [
        (
            one.layer, one.experts, one.outputs_compared, identical_text(one.verilog), identical_text(one.numpy),
            one.cycles, one.closed_form, f"{100 * (one.utilisation or 0):.0f}%",
        )
        for one in result.layers
    ]  # fmt: skip
    header = ("layer", "experts", "outputs", "Verilog", "numpy", "cycles", "closed form", "of the peak")
    port = "a beat" if result.bytes_per_cycle is None else f"{result.bytes_per_cycle:g} bytes"
    array = "x".join(map(str, result.array))
    return f"{table(header, rows)}\n\n{result.cycles} cycles ({result.kind}: the Verilog, {array}, {port} a cycle)"


def simulation_text(result: SimulationResult) -> str:
    """A row for each policy, what it takes of the board, and what nobody measured."""
    header = (
        "policy", "ms", "linear", "attention", "vector", "gate", "stall", "from DDR", "on chip", "queued", "DSP",
        "BRAM36", "URAM",
    )  # fmt: skip
    lines = [
        f"{result.accelerator}, {result.network}: one frame ({result.kind}; routing {result.routing})",
        "",
        table(header, [_policy_row(one) for one in result.policies]),
    ]
    tasks = [f"{one.policy} {task} {ms:.4g} ms" for one in result.policies for task, ms in one.tasks_ms.items()]
    if len(tasks) > len(result.policies):
        lines += ["", "by task: " + ", ".join(tasks)]
    switch = result.switching
    if switch is not None:
        lines.append(
            f"switching the task every frame ({switch.policy}): {switch.extra_cycles} cycles and {switch.extra_bytes} "
            "bytes more than staying"
        )
    lines += [f"left out: {policy}: {why}" for policy, why in result.left_out.items()]
    lines += [f"{one.policy}: {one.resources.problem}" for one in result.policies if one.resources.problem]
    lines.append(
        f"The clock of {result.clock_mhz:g} MHz is assumed. Weights come from DDR over one port. No energy is measured."
    )
    lines += [written for written in (result.timeline, result.chrome_trace) if written]
    return "\n".join(lines)


def _policy_row(one: PolicyCosts) -> tuple[Any, ...]:
    board = (one.resources.dsp, one.resources.bram36, one.resources.uram)
    parts = (one.parts_ms[unit] for unit in ("linear", "attention", "vector", "gate"))
    return (
        one.policy, f"{one.ms:.4g}", *(f"{ms:.3g}" for ms in parts),
        f"{one.stall_ms:.3g}", count(one.ddr_bytes + one.streamed_bytes, "B"), count(one.peak.weight_bytes, "B"),
        one.peak.queue_places, *(f"{taken.used}/{taken.total}" for taken in board),
    )  # fmt: skip


def search_text(result: DesignSearchResult) -> str:
    """The Pareto front."""
    rows = [
        (
            f"{one.ms:.4g}", one.dsp, one.bram36, one.uram, "x".join(map(str, one.linear)), one.queries,
            f"{one.buffers} of {count(one.buffer_bytes, 'B')}",
        )
        for one in result.front
    ]  # fmt: skip
    lines = [
        f"{result.accelerator} changed for {result.network} on {result.board}: {result.tried} designs tried, "
        f"{result.too_large} do not fit, {len(rows)} on the front",
        "",
        table(("ms", "DSP", "BRAM36", "URAM", "array", "queries", "buffers"), rows),
        "",
        f"{result.policy}, {result.kind}; the clock of {result.clock_mhz:g} MHz is assumed for all of them",
    ]
    return "\n".join([*lines, *([result.picture] if result.picture else [])])


def synthesis_text(result: SynthesisResult) -> str:
    """Resources beside the board's."""
    rows = [
        (name, one.used, "-" if one.total is None else one.total, share(one.used, one.total))
        for name, one in result.resources.by_name().items()
    ]
    array = "x".join(map(str, result.array))
    note = f"{array} on {result.board}: mapped by {result.version} in {result.seconds:g} s, not placed ({result.kind})"
    return f"{table(('resource', 'used', 'there', 'share'), rows)}\n\n{note}"
