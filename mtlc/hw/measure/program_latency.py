"""Measures a program's latency: exports it to a temporary bundle and times that."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtlc.program.program import Program

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mtlc.program.program import Program
from mtlc.files import scratch_folder
from mtlc.hw.measure.in_turns import measure

# Timing a network does not ask that it be exported to the last digit; a bundle that is shipped is checked more closely.
_TIMING_TOLERANCE = 1e-2


def measure_program(program: Program, threads: int = 1, rounds: int = 30) -> float:
    """The median latency of a program in ms, for one sample and all tasks: exported to a temporary bundle and run.

    With one thread it is the CPU time of a call: on a machine with nothing else to do that is its wall time, and other
    processes disturb it little. Seconds, most of them for the export. Raises what `export_bundle` raises.
    """
    with exported(program) as (path, inputs):
        result = measure({"program": path}, inputs, threads=threads, rounds=rounds)
    return float(result["bundles"]["program"]["cpu_median_ms" if threads == 1 else "median_ms"])


@contextmanager
def exported(program: Program) -> Iterator[tuple[Path, dict[str, np.ndarray]]]:
    """A temporary bundle of a program to time, and one random sample of its inputs. Raises what `export_bundle`
    raises.
    """
    import torch

    from mtlc.export.bundle.write_bundle import export_bundle

    generator = torch.Generator().manual_seed(0)
    samples = {
        name: torch.randn(3, *tensor.shape[1:], generator=generator).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor[:1].cpu().repeat(3, *(1,) * (tensor.dim() - 1))
        for name, tensor in program.example.items()
    }
    with scratch_folder("timing") as folder:
        path = Path(folder) / "bundle"
        export_bundle(program, path, samples=samples, tolerance=_TIMING_TOLERANCE)
        yield path, {name: np.ascontiguousarray(tensor[:1].numpy()) for name, tensor in samples.items()}


def latency_ms(program: Program, device: str = "local-cpu", threads: int = 1) -> float:
    """The latency of one sample on `device` in ms, all tasks: measured, on the one device there is to measure on.

    Raises `UserError` for a device that is unknown or not this machine.
    """
    from mtlc.hw.devices.catalogue import local_device
    from mtlc.hw.measure.program_latency import measure_program

    local_device(device)
    return measure_program(program, threads)
