"""Runs the Verilog on numpy data with Verilator: outputs to the bit, and cycles that were counted, not worked out."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlc.errors import MtlcError, Unavailable, UserError
from mtlc.files import atomic_file, cache_folder, make_folder, scratch_folder
from mtlc.hw.rtl.engine import Engine, Work, pack
from mtlc.hw.rtl.reference import Int8, QuantisedLinear

TOP = "gemm_engine"
_UNIT = 256  # bandwidth is counted in this part of a byte
_OPTIMISE = ("-O3", "--x-assign", "fast", "--x-initial", "fast", "--noassert")


@dataclass(frozen=True)
class Run:
    """What came out. `outputs`: for each expert (len(queue), N) INT8.

    `cycles`: from the first descriptor to the last row taken, with tokens and queues in their memories before. Of these
    `streaming` fed the array, `waited_for_weights` had nothing to start because a tile was not there, and
    `waited_for_room` had no room for its results. `late_beats`: cycles in which a weight could have been taken and none
    came; `refused_rows`: cycles in which a result was offered and not taken.
    """

    outputs: tuple[Int8, ...]
    cycles: int
    streaming: int
    waited_for_weights: int
    waited_for_room: int
    late_beats: int
    refused_rows: int


def simulate(
    engine: Engine, x: Int8, queues: Sequence[NDArray[np.intp]], layers: Sequence[QuantisedLinear], **how: Any
) -> Run:
    """Run `layers` on the tokens of `x` (T, K) that `queues` name, as `play` does with what `how` it takes.

    See `mtlc.hw.rtl.engine.pack` for what is refused.
    """
    return play(engine, pack(engine, x, queues, layers), [layer.outputs for layer in layers], **how)


def play(
    engine: Engine,
    work: Work,
    outputs: Sequence[int],
    *,
    bytes_per_cycle: float | None = None,
    back_pressure: float = 0.0,
    seed: int = 0,
    cache: Path | None = None,
    explicit_dsp: bool = False,
) -> Run:
    """Run packed work; `outputs` of each expert's layer, the columns beyond are left out.

    `bytes_per_cycle` limits the weight port, in steps of 1/256; None gives a whole beat in every cycle. `back_pressure`
    is the share of cycles, drawn from `seed`, in which no result is taken. `cache` holds the built simulation, by
    default in the user's cache folder. `explicit_dsp` simulates the elements as they are synthesised, each with a
    DSP48E2, whose used part ``models/DSP48E2.v`` describes. Raises `Unavailable` if Verilator or a C++ compiler is
    missing.
    """
    beat = engine.columns * _UNIT
    bandwidth = bandwidth_units(engine, bytes_per_cycle)
    if not 0 <= back_pressure <= 0.95:
        raise UserError(f"back_pressure = {back_pressure}: must be a share of cycles from 0 to 0.95")
    pressure = round(back_pressure * 256)
    # Far more than any run can take: what passes it hangs.
    # A deliberate overestimate, each part counted as if nothing overlapped.
    per_row = int(work.descriptors[:, 3].sum() * engine.rows)
    rows = int((-(-work.descriptors[:, 6] // engine.rows) * work.descriptors[:, 4]).sum())
    limit = 1000 + 4 * len(work.beats) * -(-beat // bandwidth) + 400 * rows * (per_row + 400)
    program = build(engine, cache, explicit_dsp)
    with scratch_folder("rtl") as folder:
        request, answer = Path(folder) / "request", Path(folder) / "answer"
        head = (len(work.descriptors), len(work.tokens), len(work.queue), len(work.beats), bandwidth, beat, pressure)
        _write(request, np.array((*head, seed & (2**63 - 1), limit), "<u8"), work)
        done = subprocess.run([program, request, answer], capture_output=True, text=True)
        if done.returncode:
            reason = "hangs" if done.returncode == 3 else f"ends with {done.returncode}: {done.stderr.strip()}"
            raise MtlcError(f"the simulation of the engine {reason} ({len(work.descriptors)} experts)")
        data = answer.read_bytes()
    counts = np.frombuffer(data, "<u8", 7).tolist()
    return Run(_outputs(engine, data[56:], counts[6], work.descriptors[:, 6].tolist(), outputs), *counts[:6])


def bandwidth_units(engine: Engine, bytes_per_cycle: float | None) -> int:
    """The weight port's limit in 1/256 bytes a cycle, a beat's bytes at most. Raises `UserError` for none at all."""
    beat = engine.columns * _UNIT
    if bytes_per_cycle is None:
        return beat
    units = min(beat, round(bytes_per_cycle * _UNIT))
    if units < 1:
        raise UserError(f"bytes_per_cycle = {bytes_per_cycle}: must be 1/256 or more")
    return units


def build(engine: Engine, cache: Path | None = None, explicit_dsp: bool = False) -> Path:
    """The simulation's program for this shape, built once for the same sources, parameters and Verilator.

    Raises `Unavailable` (exit code 5) if Verilator, make or a C++ compiler is missing, and `MtlcError` if the build
    fails.
    """
    for tool in ("verilator", "make", "g++"):
        if shutil.which(tool) is None:
            raise Unavailable(
                f"{tool} is not installed: the RTL simulation needs it (apt-get install verilator g++ make)"
            )
    version = subprocess.run(["verilator", "--version"], capture_output=True, text=True).stdout.strip()
    parameters = [f"-G{name}={value}" for name, value in engine.defines().items()]
    if explicit_dsp:
        parameters.append("-DUSE_DSP48E2")
    digest = hashlib.sha256("\n".join((version, *_OPTIMISE, *parameters)).encode())
    with as_file(files("mtlc.hw.rtl")) as sources:
        verilog = sorted(sources.glob("*.v"))
        if explicit_dsp:
            verilog.append(sources / "models" / "DSP48E2.v")
        harness = sources / "simulate.cpp"
        for path in (*verilog, harness):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        folder = cache if cache is not None else cache_folder("rtl")
        program = folder / f"gemm-{engine.rows}x{engine.columns}-{digest.hexdigest()[:20]}"
        if program.exists():
            return program
        make_folder(folder)
        # Verilator's makefiles take no paths with blanks: everything happens in a folder whose name has none.
        with scratch_folder("rtl") as work:
            for path in (*verilog, harness):
                shutil.copy(path, work)
            command = [
                "verilator", "--cc", "--exe", "--build", *_OPTIMISE, *parameters, "--top-module", TOP, "-Wno-WIDTH",
                "-CFLAGS", f"-O2 -DR={engine.rows} -DC={engine.columns}", "--Mdir", "built",
                *(path.name for path in verilog), harness.name,
            ]  # fmt: skip
            done = subprocess.run(command, cwd=work, capture_output=True, text=True)
            if done.returncode:
                raise MtlcError(f"Verilator cannot build the engine: {(done.stderr or done.stdout).strip()[-1500:]}")
            # Two processes may build at once: each puts a whole program there, and either will do.
            with atomic_file(program, 0o755) as temporary:
                shutil.copyfile(Path(work) / "built" / f"V{TOP}", temporary)
    return program


def _write(path: Path, head: NDArray[np.uint64], work: Work) -> None:
    with path.open("wb") as file:
        for part in (head, work.descriptors.astype("<u8"), work.tokens, work.queue.astype("<u2"), work.beats):
            file.write(np.ascontiguousarray(part).tobytes())


def _outputs(
    engine: Engine, data: bytes, count: int, lengths: Sequence[int], outputs: Sequence[int]
) -> tuple[Int8, ...]:
    """Rows put where their marks say; every place must have come exactly once."""
    row = np.dtype([("expert", "<u4"), ("tile", "<u4"), ("place", "<u4"), ("y", "i1", (engine.columns,))])
    rows = np.frombuffer(data, row, count)
    found, first = [], 0
    for expert, (length, columns) in enumerate(zip(lengths, outputs, strict=True)):
        tiles = -(-columns // engine.columns)
        own = rows[rows["expert"] == expert]
        places = own["place"].astype(np.int64) - first
        # Rows come out tile by tile; a slot says where each belongs. All slots once: none was lost, none came twice.
        slots = places * tiles + own["tile"]
        if not np.array_equal(np.sort(slots), np.arange(length * tiles)):
            raise MtlcError(f"the simulation of the engine lost or doubled a row of expert {expert}")
        whole = np.empty((length * tiles, engine.columns), np.int8)
        whole[slots] = own["y"]
        found.append(whole.reshape(length, tiles * engine.columns)[:, :columns])
        first += length
    return tuple(found)
