"""The verbs of the command line about FPGAs, and ``mtlc export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mtlc.front import DEBUG, JSON, PATH, QUIET, Front, emit, listener

DATA_JOB = click.option("--job", type=PATH, help="The job whose data and factory a checkpoint needs.")
ARRAY = click.option("--array", metavar="RxC", help="The array: rows x columns. Default: 8x8.")
TASK = click.option("--task", help="The task. Default: the only one.")
ACCELERATOR = click.option(
    "--accelerator", default="m3vit-zcu104", show_default=True, help="Its name, or a .toml file."
)
POLICY = click.Choice(("dense", "cache", "resident", "reordered"))
TRACE = click.option("--trace", type=PATH, help="A routing trace (.npz). Default: recorded on calibration samples.")
FRAMES = click.option("--frames", type=click.IntRange(1, 4096), help="Frames of each task. Default: 4; 1 to search.")
BOARD = click.option("--board", help="The device whose resources count, or its file. Default: the accelerator's.")


@click.command()
@click.argument("target", type=PATH)
@click.option("--format", "form", type=click.Choice(("onnx", "fpga")), default="onnx", show_default=True)
@click.option("--out", type=PATH, required=True, help="The folder to write.")
@DATA_JOB
@TASK
@click.option("--layer", "layers", multiple=True, metavar="PATH", help="A layer of experts; may be given again. Default: all.")  # fmt: skip
@ARRAY
@click.option("--samples", type=click.IntRange(1), help="Samples to calibrate on. Default: 32.")
@click.option("--floor-db", type=float, help="The least signal to quantisation noise of a layer. Default: 20.")
@click.option("--no-metric", is_flag=True, help="Do not measure the task with INT8 experts.")
@JSON
@DEBUG
@QUIET
def export(
    target: Path, form: str, out: Path, job: Path | None, as_json: bool, quiet: bool, **options: Any
) -> None:  # fmt: skip
    """Write the network of TARGET, a job or a checkpoint (with --job), for what runs it: a bundle, or an FPGA's experts.

    Options from --task on are those of --format fpga: the experts of one task in INT8, with a recorded frame to test with.
    """
    from mtlc.compile import text_fpga
    from mtlc.compile.export import FpgaOptions
    from mtlc.compile.export import export as write

    result = write(target, out, form, job=job, fpga=FpgaOptions(**options), log=listener(quiet)["log"])
    emit(as_json, result, text_fpga.export)


@click.group(cls=Front)
def fpga() -> None:
    """Simulate an accelerator, search its design, run exported experts on the Verilog, count its resources."""


@fpga.command()
@click.argument("network", type=PATH)
@ACCELERATOR
@click.option("--policy", "policies", multiple=True, type=POLICY, help="May be given again. Default: all that fit the board.")  # fmt: skip
@DATA_JOB
@TRACE
@FRAMES
@BOARD
@click.option("--anyway", is_flag=True, help="Simulate what does not fit the board, too.")
@click.option("--timeline", type=PATH, help="Picture of the last policy, .svg, .png or .pdf.")
@click.option("--chrome-trace", type=PATH, help="The same as a .json for Perfetto.")
@JSON
@DEBUG
@QUIET
def simulate(network: Path, accelerator: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Simulate NETWORK on an accelerator: a job, a checkpoint (with --job), pascal-small, nyud-small or cityscapes-tiny."""
    from mtlc.compile import text_fpga
    from mtlc.compile.fpga import simulate as play

    result = play(network, accelerator, log=listener(quiet)["log"], **options)
    emit(as_json, result, text_fpga.simulation)


@fpga.command()
@click.argument("network", type=PATH)
@ACCELERATOR
@click.option("--policy", type=POLICY, default="reordered", show_default=True)
@DATA_JOB
@TRACE
@FRAMES
@BOARD
@click.option("--picture", type=PATH, help="The designs over DSP slices, .svg, .png or .pdf.")
@JSON
@DEBUG
@QUIET
def search(network: Path, accelerator: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Try arrays and buffers for NETWORK on a board: the Pareto front of latency, DSP slices and memory."""
    from mtlc.compile import text_fpga
    from mtlc.compile.fpga import search as look

    emit(as_json, look(network, accelerator, log=listener(quiet)["log"], **options), text_fpga.search)


@fpga.command()
@click.argument("folder", type=PATH)
@click.option("--layer", "layers", multiple=True, metavar="PATH", help="A layer to run; may be given again. Default: all.")  # fmt: skip
@click.option("--bytes-per-cycle", type=click.FloatRange(0, min_open=True), help="Limit of the weight port. Default: a beat a cycle.")  # fmt: skip
@JSON
@DEBUG
@QUIET
def rtl(folder: Path, layers: tuple[str, ...], bytes_per_cycle: float | None, as_json: bool, quiet: bool) -> None:
    """Run FOLDER, which `mtlc export --format fpga` wrote, on the engine's Verilog and compare every output (Verilator)."""
    from mtlc.compile import text_fpga
    from mtlc.compile.rtl import run_exported, verdict

    result = run_exported(folder, layers, bytes_per_cycle, log=listener(quiet)["log"])
    emit(as_json, result, text_fpga.rtl)
    verdict(result)


@fpga.command()
@ARRAY
@click.option("--board", default="zcu104", show_default=True, help="The device whose resources count, or its file.")
@click.option("--inferred", is_flag=True, help="Let yosys choose the DSPs instead of instantiating them.")
@click.option("--timeout", type=click.FloatRange(1), default=1800, show_default=True, help="Seconds to give up after.")
@JSON
@DEBUG
@QUIET
def synthesise(
    array: str | None, board: str, inferred: bool, timeout: float, as_json: bool, quiet: bool
) -> None:  # fmt: skip
    """Count what the engine takes of an FPGA (yosys). A minute or more for 8x8; large arrays take far longer, and gigabytes."""
    from mtlc.compile import text_fpga
    from mtlc.compile.rtl import synthesise as count

    emit(as_json, count(array, board, inferred, timeout, log=listener(quiet)["log"]), text_fpga.synthesis)
