"""Finds the time per layer and operator: a backend's profile of a bundle, joined to module paths of its nodes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mtlc.errors import UserError
from mtlc.files import scratch_folder
from mtlc.hw.measure.in_turns import Inputs
from mtlc.hw.measure.kernel_times import KernelTime, read_kernel_times
from mtlc.hw.measure.this_machine import this_machine
from mtlc.runtime.bundle.open_bundle import open_bundle
from mtlc.runtime.session import Session

UNATTRIBUTED = "(runtime)"
_Key = TypeVar("_Key", bound=Hashable)


def profile_layers(
    bundle: str | Path,
    inputs: Inputs,
    threads: int = 1,
    tasks: Iterable[str] | str | None = None,
    rounds: int = 20,
    warmup: int = 5,
    backend: str = "auto",
) -> dict[str, Any]:
    """The time of each module and each kind of operator in ms, by the backend's own profiler: medians over `rounds`
    runs.

    ``layers`` is a list of ``{"name", "ms", "share", "kernel"}`` in execution order, the kernel being the layer's
    slowest. A backend fuses and reorders: a fused operator counts for one of the layers in it, mostly the one whose
    weights it reads, and what the backend added itself, such as layout changes, is listed as ``"(runtime)"``.
    ``attributed`` is the share of the time that has a layer. ``operators`` is a list of ``{"kind", "kernel", "ms",
    "share", "count"}``, slowest first: the exported operator, the kernel that ran it, how many of them a run has.
    Profiling itself adds some microseconds an operator, so ``total_ms`` is a little more than `measure` finds.

    Raises `Unavailable` for a backend whose profiles are not known.
    """
    if rounds < 1 or warmup < 0:
        raise UserError(f"rounds = {rounds}, warmup = {warmup}: one round or more, and no negative warm-up")
    if tasks is not None and not isinstance(tasks, str):
        tasks = tuple(tasks)
    with scratch_folder("profile") as folder:
        with Session(bundle, backend, threads, profile=Path(folder) / "run") as session:
            for _ in range(warmup + rounds):
                session.run(inputs, tasks)
            profiles, order, name = session.end_profile(), session.programs(tasks), session.backend
        with open_bundle(bundle) as opened:
            # Programs may share a file, and a file has one profile: of all their calls.
            files = {opened.program_path(program): profiles.get(program) for program in order}
            times = [
                time
                for graph, profile in files.items()
                if profile is not None
                for time in read_kernel_times(name, profile, graph, rounds, warmup)
            ]
    return {
        "kind": "measured",
        "device": this_machine(),
        "backend": name,
        "threads": threads,
        "rounds": rounds,
        **summed(times, rounds),
    }


def summed(times: Iterable[KernelTime], rounds: int) -> dict[str, Any]:
    """``total_ms``, ``attributed``, ``layers`` and ``operators`` of `profile_layers` from kernel times of `rounds`
    runs.
    """
    layers: dict[str, list[float]] = defaultdict(lambda: [0.0] * rounds)
    operators: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0] * rounds)
    kernels: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    counts: Counter[tuple[str, str]] = Counter()
    for time in times:
        name = UNATTRIBUTED if time.layer is None else time.layer
        layers[name][time.run] += time.ms
        kernels[name][time.kernel] += time.ms
        operators[time.kind, time.kernel][time.run] += time.ms
        counts[time.kind, time.kernel] += 1
    median = _medians(layers)
    total = sum(median.values())
    kinds = sorted(_medians(operators).items(), key=lambda entry: -entry[1])
    all_kinds = sum(ms for _, ms in kinds)
    return {
        "total_ms": total,
        "attributed": 1 - median.get(UNATTRIBUTED, 0.0) / total if total else 0.0,
        "layers": [
            {"name": name, "ms": ms, "share": ms / total if total else 0.0, "kernel": _slowest(kernels[name])}
            for name, ms in median.items()
        ],
        "operators": [
            {
                "kind": kind,
                "kernel": kernel,
                "ms": ms,
                "share": ms / all_kinds if all_kinds else 0.0,
                "count": counts[kind, kernel] / rounds,
            }
            for (kind, kernel), ms in kinds
        ],
    }


def _medians(series: Mapping[_Key, list[float]]) -> dict[_Key, float]:
    return {key: float(np.median(values)) for key, values in series.items()}


def _slowest(kernels: Mapping[str, float]) -> str:
    return max(kernels, key=lambda kernel: kernels[kernel])
