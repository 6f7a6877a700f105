"""Runs exported experts on the engine's Verilog, and counts what the Verilog takes of a board.

`run_exported` is ``mtlc fpga rtl``, `synthesise` is ``mtlc fpga synthesise``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtlc.errors import UserError, VerificationError, nearest
from mtlc.hw.devices.catalogue import device
from mtlc.hw.rtl.engine import Engine
from mtlc.hw.rtl.exported import read_exported, run_layer
from mtlc.hw.rtl.synthesis import synthesise as run_yosys
from mtlc.hw.rtl.verilator import build
from mtlc.log import Log, silent
from mtlc.results.fpga import BoardShare
from mtlc.results.rtl import EngineResources, SynthesisResult, VerilogRun
from mtlc.workflows.export import array_of


def run_exported(
    folder: Path, layers: Sequence[str] = (), bytes_per_cycle: float | None = None, log: Log = silent
) -> VerilogRun:
    """Run every layer's recorded frame on the Verilog and in numpy, and compare all outputs with those of the export.

    `layers` names some of them; `bytes_per_cycle` limits the weight port. Raises `UserError` for a folder that is
    damaged or a layer that is not in it, and `Unavailable` without Verilator.
    """
    exported = read_exported(folder)
    for name in layers:
        if name not in exported.paths:
            raise UserError(f"--layer: {folder} has no layer {name!r}{nearest(name, exported.paths)}")
    log("building the simulation")
    build(exported.engine)
    found = []
    for index, path in enumerate(exported.paths):
        if not layers or path in layers:
            log(f"running {path}")
            found.append(run_layer(exported, index, bytes_per_cycle))
    engine = exported.engine
    return VerilogRun(
        kind="simulated",
        folder=str(folder),
        task=exported.layout["task"],
        array=[engine.rows, engine.columns],
        bytes_per_cycle=bytes_per_cycle,
        identical=all(one.verilog and one.numpy for one in found),
        cycles=sum(one.cycles for one in found),
        closed_form=sum(one.closed_form for one in found),
        layers=found,
    )


def verdict(result: VerilogRun) -> None:
    """Raises `VerificationError` that names the layers whose outputs differ."""
    wrong = [one.layer for one in result.layers if not (one.verilog and one.numpy)]
    if wrong:
        raise VerificationError(f"{result.folder}: outputs differ from those exported in {', '.join(wrong)}")


def synthesise(
    array: str | None, board: str, inferred: bool = False, timeout_s: float = 1800, log: Log = silent
) -> SynthesisResult:
    """What yosys counts for an engine of this array, beside what the device `board` has.

    Raises `UserError` for a device that is no FPGA, `Unavailable` without yosys.
    """
    engine = Engine(*array_of(array or "8x8"))
    target = device(board)
    totals = target.resources
    if not totals:
        raise UserError(f"device {board!r} is no FPGA: its file has no section [fpga]")
    log(f"yosys: {engine.rows}x{engine.columns} takes a while")
    found = run_yosys(engine, explicit_dsp=not inferred, timeout_s=timeout_s)
    return SynthesisResult(
        array=[engine.rows, engine.columns],
        board=target.title,
        version=found.version,
        seconds=found.seconds,
        kind="synthesised",
        dsp_instantiated=not inferred,
        resources=EngineResources(
            lut=BoardShare(used=found.lut, total=totals.get("lut")),
            ff=BoardShare(used=found.ff, total=totals.get("ff")),
            dsp=BoardShare(used=found.dsp, total=totals.get("dsp")),
            bram36=BoardShare(used=found.bram36, total=totals.get("bram36")),
            uram=BoardShare(used=found.uram, total=totals.get("uram")),
        ),
        cells=found.cells,
    )
