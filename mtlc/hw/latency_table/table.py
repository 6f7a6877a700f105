"""Keeps the latency lookup table of this machine: ms of operators at a grid of channel counts, measured on demand.

Between grid points a time is interpolated linearly in every size; a blocked convolution is padded up to its block,
which is what onnxruntime does. A network costs the sum of its kernels, and for what no kernel measured alone has, a
constant for every kernel and every call, which are fitted to whole networks that were measured
(`LatencyTable.observe`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlc.checksums import read_sealed, write_sealed
from mtlc.errors import Unavailable, UserError
from mtlc.files import cache_folder, one_at_a_time
from mtlc.hw.latency_table.families import Family, corners, placed, resized
from mtlc.hw.latency_table.kernels import Kernel, Traced, trace_program
from mtlc.hw.latency_table.probe import KernelTimer, channel_block
from mtlc.hw.measure.this_machine import this_machine
from mtlc.log import Log, silent

if TYPE_CHECKING:
    from mtlc.program.program import Program

SCHEMA = 1
_ENOUGH = 4
Timer = Callable[[Kernel], float]


@dataclass(frozen=True)
class Observation:
    """A whole network that was measured: the table's sum of its kernels, how many kernels and calls, and its ms."""

    kernels_ms: float
    kernels: int
    calls: int
    measured_ms: float


@dataclass(frozen=True)
class Prediction:
    """Modelled from measured operators. `layers` has the ms by module path; "(runtime)" is what belongs to none."""

    ms: float
    kernels_ms: float
    layers: Mapping[str, float]
    kind: str = "modelled"


@dataclass
class LatencyTable:
    """Times of one machine. `timer` measures what is missing; without one, that is an error.

    `entries` has the ms by family and by sizes (``"64,128"``).
    """

    machine: Mapping[str, Any]
    block: int
    timer: Timer | None = None
    path: Path | None = None
    entries: dict[str, dict[str, float]] = field(default_factory=dict)
    observations: list[Observation] = field(default_factory=list)
    reference_ms: float | None = None

    def kernel_ms(self, kernel: Kernel, sizes: Sequence[int] | None = None) -> float:
        """The ms of a kernel inside its family at `sizes` (default: its own). Raises `UserError` if it is missing."""
        family, own = placed(kernel, self.block)
        return self.at(kernel, family, own if sizes is None else tuple(sizes))

    def at(self, kernel: Kernel, family: Family, sizes: Sequence[int]) -> float:
        if any(size <= 0 for size in sizes):
            return 0.0
        if family.form == "elements":
            return self._by_elements(kernel, family, sizes[0])
        return sum(share * self._entry(kernel, family, point) for point, share in corners(family, sizes))

    def predict(self, program: Program | Traced, threads: int = 1) -> Prediction:
        """The latency of one sample through all tasks in ms, with the ms of every layer."""
        traced = program if isinstance(program, Traced) else trace_program(program, threads)
        layers: dict[str, float] = {}
        scale, launch, call = self.inside()
        total = 0.0
        for kernel, runs in zip(traced.kernels, traced.runs, strict=True):
            ms = runs * self.kernel_ms(kernel)
            total += ms
            layers[kernel.layer] = layers.get(kernel.layer, 0.0) + scale * ms + runs * launch
        return Prediction(scale * total + launch * traced.kernel_runs + call * traced.calls, total, layers)

    def observe(self, traced: Traced, measured_ms: float) -> None:
        """Learn from a whole network that was measured what kernels cost inside one beyond what they cost alone."""
        sum_ms = sum(runs * self.kernel_ms(kernel) for kernel, runs in zip(traced.kernels, traced.runs, strict=True))
        self.observations.append(Observation(sum_ms, traced.kernel_runs, traced.calls, measured_ms))

    def inside(self) -> tuple[float, float, float]:
        """What kernels cost inside a network: a factor on their time, and the ms of each and of each call of a session.

        Relative least squares over the networks that were observed, none negative; the factor is 1 with fewer than
        four.
        """
        if not self.observations:
            return 1.0, 0.0, 0.0
        from scipy.optimize import nnls

        # ms ≈ scale · Σ kernels + launch · (number of kernels) + call · (number of calls). Rows are divided by what was
        # measured, so that a small network's error counts as much as a large one's.
        rows = np.array([[o.kernels_ms, o.kernels, o.calls] for o in self.observations], float)
        measured = np.array([o.measured_ms for o in self.observations])
        if len(rows) < _ENOUGH:
            # Too few networks for three unknowns: the kernels are taken at their word, and the rest explains what is
            # left.
            (launch, call), _ = nnls(rows[:, 1:] / measured[:, None], np.maximum(1 - rows[:, 0] / measured, 0.0))
            return 1.0, float(launch), float(call)
        (scale, launch, call), _ = nnls(rows / measured[:, None], np.ones(len(rows)))
        return float(scale), float(launch), float(call)

    def save(self) -> None:
        """Write the table to its file, if it has one, with what other processes have added to it since it was read."""
        if self.path is None:
            return
        with one_at_a_time(self.path):
            kept = LatencyTable(self.machine, self.block)
            _read(kept, self.path, silent)
            write_sealed(self.path, self._merged(kept))

    def _merged(self, kept: LatencyTable) -> dict[str, Any]:
        """What the file is to hold: all that is in it, and what this table has, which counts where both measured.

        Two processes that both began without a file have a reference time each. The file's stays, and what was scaled
        to the other is scaled to it.
        """
        reference = kept.reference_ms or self.reference_ms
        scale = (reference or 1.0) / (self.reference_ms or 1.0)
        entries = {family: dict(points) for family, points in kept.entries.items()}
        for family, points in self.entries.items():
            entries.setdefault(family, {}).update({sizes: ms * scale for sizes, ms in points.items()})
        observations = list(kept.observations)
        for own in (replace(o, kernels_ms=o.kernels_ms * scale) for o in self.observations):
            if own not in observations:
                observations.append(own)
        return {
            "schema": SCHEMA, "kind": "measured", "machine": dict(self.machine), "block": self.block,
            "reference_ms": reference, "observations": [asdict(o) for o in observations], "entries": entries,
        }  # fmt: skip

    def _entry(self, kernel: Kernel, family: Family, point: tuple[int, ...]) -> float:
        found = self.entries.setdefault(family.key, {})
        name = ",".join(map(str, point))
        if name not in found:
            try:
                found[name] = self._measured(resized(kernel, family, point))
            except Unavailable:  # it needs what its network computes: its time in there, in proportion
                found[name] = kernel.ms * math.prod(point) / math.prod(placed(kernel, self.block)[1])
        return found[name]

    def _by_elements(self, kernel: Kernel, family: Family, elements: int) -> float:
        """On the line through the nearest measured points, in proportion outside them but never under the least."""
        found = self.entries.setdefault(family.key, {})
        own = kernel.elements
        if str(own) not in found:
            try:
                found[str(own)] = self._measured(kernel)
            except Unavailable:
                found[str(own)] = kernel.ms  # it needs what its network computes: its time in there
        points = sorted((int(size), ms) for size, ms in found.items())
        sizes, times = zip(*points, strict=True)
        if elements > sizes[-1]:
            # Beyond the largest measured point the time is taken to grow in proportion to the elements.
            result: float = times[-1] * elements / sizes[-1]
            return result
        return float(np.interp(elements, sizes, times))

    def _measured(self, kernel: Kernel) -> float:
        if self.timer is None:
            raise UserError(
                f"layer {kernel.layer!r}: the latency table has no {kernel.operator} of this shape, "
                "and is not to measure it"
            )
        return self.timer(kernel)


def open_table(threads: int = 1, path: Path | None = None, log: Log = silent) -> LatencyTable:
    """The table of this machine from its file, empty where there is none.

    A file of another machine, version or number of threads is not used; one that cannot be read is measured anew, and
    `log` is told so.
    """
    machine = machine_key(threads)
    where = table_path(machine) if path is None else path
    table = LatencyTable(machine, channel_block(), path=where)
    _read(table, where, log)
    timer = KernelTimer(threads, table.reference_ms)
    table.timer, table.reference_ms = timer, timer.reference_ms
    return table


def _read(table: LatencyTable, where: Path, log: Log) -> None:
    value = read_sealed(where, log, "measuring anew")
    if value is None:
        return
    try:
        if value["schema"] != SCHEMA or value["machine"] != dict(table.machine) or value["block"] != table.block:
            log(f"{where}: the latency table of another machine or version; measuring anew")
            return
        entries = {k: {s: float(ms) for s, ms in points.items()} for k, points in value["entries"].items()}
        if any(not 0 <= ms < float("inf") for points in entries.values() for ms in points.values()):
            raise ValueError
        table.reference_ms = float(value["reference_ms"])
        table.observations = [Observation(**o) for o in value["observations"]]
        table.entries = entries
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        table.reference_ms, table.observations = None, []
        log(f"{where}: not a latency table; measuring anew")


def machine_key(threads: int) -> dict[str, Any]:
    """What a time depends on beside the kernel: entries of another key are never used."""
    known = this_machine()
    return {**{name: known[name] for name in ("cpu", "machine", "system", "onnxruntime")}, "threads": threads}


def table_path(machine: Mapping[str, Any]) -> Path:
    """``<hash of the machine>.json`` in the user's cache of latency tables."""
    digest = hashlib.sha256(json.dumps(dict(machine), sort_keys=True).encode()).hexdigest()
    return cache_folder("latency") / f"{digest[:16]}.json"
