"""Measures latency on this machine's CPU, through the runtime that a device would use.

Bundles are run in turns, A B A B …, so that a change of clock or load meets all of them; medians and the spread are
reported, and CPU time beside wall time, which other processes disturb less. Where the processor lets us, the
instructions that a call retires are counted too: they hardly vary at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlc.errors import Unavailable, UserError
from mtlc.hw.measure.instructions import Counter
from mtlc.hw.measure.this_machine import this_machine
from mtlc.runtime.backends.find_backend import find_backend
from mtlc.runtime.session import Session

if TYPE_CHECKING:
    pass

Inputs = np.ndarray | Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Setting:
    """How a bundle is run: where it is, the backend, threads per program, the configuration (None: its default).

    `batch` is what its session is told of the number of samples: None, nothing, or that of every call.
    """

    path: str | Path
    backend: str = "auto"
    threads: int = 1
    configuration: str | None = None
    batch: int | None = None

    def session(self) -> Session:
        """The bundle, opened and configured so. Raises what `Session` raises."""
        session = Session(self.path, self.backend, self.threads, batch=self.batch)
        try:
            if self.configuration is not None:
                session.configure(self.configuration)
        except BaseException:
            session.close()
            raise
        return session


@dataclass
class _Series:
    """What was measured of one bundle, an entry a round; `instructions` has None where the counter was interrupted."""

    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    instructions: list[int | None] = field(default_factory=list)


def measure(
    bundles: Mapping[str, str | Path],
    inputs: Inputs,
    tasks: Iterable[str] | str | None = None,
    threads: int = 1,
    rounds: int = 50,
    warmup: int = 5,
    configurations: Mapping[str, str] = MappingProxyType({}),
    backend: str = "auto",
) -> dict[str, Any]:
    """`measure_settings` of bundles that all run in one backend with as many threads, which are in the result too.

    `configurations` are what bundles run in, by label, if not their default.
    """
    settings = {label: Setting(path, backend, threads, configurations.get(label)) for label, path in bundles.items()}
    found = measure_settings(settings, inputs, tasks, rounds, warmup)
    name, package = backend_version(backend)
    return {**found, "backend": {"name": name, "version": package}, "threads": threads}


def measure_settings(
    settings: Mapping[str, Setting],
    inputs: Inputs,
    tasks: Iterable[str] | str | None = None,
    rounds: int = 50,
    warmup: int = 5,
) -> dict[str, Any]:
    """Wall and CPU time of one call of each bundle, as its setting says, on `inputs`, in ms, and the instructions that
    it retires.

    A round gives every setting one turn: an untimed call, which brings its weights back into the caches, and a timed
    one. The result has ``bundles[label]``, the `summary` of the wall times with ``cpu_median_ms`` (all threads); and,
    for every label but the first, ``speedup[label]``: the median over the rounds of first / label, with its p10 and
    p90.

    ``bundles[label]["instructions"]`` has ``median``, ``p10``, ``p90`` and ``spread`` of a call in all threads of the
    process, in user space, the caller's Python included; None where they cannot be counted, and ``instructions_why``
    says in a line why.

    Raises `UserError` for no bundle, too few rounds, or what `Session` refuses.
    """
    if not settings:
        raise UserError("nothing to measure: give at least one bundle")
    if rounds < 2 or warmup < 0:
        raise UserError(f"rounds = {rounds}, warmup = {warmup}: two rounds or more, and no negative warm-up")
    if tasks is not None and not isinstance(tasks, str):
        tasks = tuple(tasks)
    sessions = {}
    try:
        for label, setting in settings.items():
            sessions[label] = setting.session()
        for session in sessions.values():
            for _ in range(max(warmup, 1)):
                session.run(inputs, tasks)
        counter, why = _counter()
        with counter or nullcontext():
            series = _rounds(sessions, inputs, tasks, rounds, counter)
    finally:
        for session in sessions.values():
            session.close()
    first = next(iter(settings))
    array = inputs if isinstance(inputs, np.ndarray) else next(iter(inputs.values()))
    counted = {label: _count_summary(one.instructions) for label, one in series.items()}
    if why is None and None in counted.values():
        why = "the kernel lent the counter to others meanwhile (multiplexed): stop other profilers"
    return {
        "kind": "measured",
        "device": this_machine(),
        "batch": int(array.shape[0]),
        "rounds": rounds,
        "warmup": warmup,
        "tasks": [tasks] if isinstance(tasks, str) else None if tasks is None else list(tasks),
        "instructions_why": why,
        "bundles": {
            label: {
                **summary(one.wall_ms),
                "cpu_median_ms": float(np.median(one.cpu_ms)),
                "instructions": counted[label],
            }
            for label, one in series.items()
        },
        "speedup": {
            label: _ratio(series[first].wall_ms, series[label].wall_ms) for label in settings if label != first
        },
    }


def summary(milliseconds: Sequence[float]) -> dict[str, float]:
    """Median, p10, p90, p99, minimum, mean and relative spread, (p90 − p10) / median, of repeated timings."""
    p10, median, p90, p99 = (float(value) for value in np.percentile(milliseconds, (10, 50, 90, 99)))
    return {
        "median_ms": median,
        "p10_ms": p10,
        "p90_ms": p90,
        "p99_ms": p99,
        "mean_ms": float(np.mean(milliseconds)),
        "min_ms": float(min(milliseconds)),
        "spread": (p90 - p10) / median if median else 0.0,
    }


def _rounds(
    sessions: Mapping[str, Session],
    inputs: Inputs,
    tasks: tuple[str, ...] | str | None,
    rounds: int,
    counter: Counter | None,
) -> dict[str, _Series]:
    series = {label: _Series() for label in sessions}
    for _ in range(rounds):
        for label, session in sessions.items():
            session.run(inputs, tasks)
            before = None if counter is None else counter.read()
            busy, start = time.process_time_ns(), time.perf_counter_ns()
            session.run(inputs, tasks)
            wall, cpu = time.perf_counter_ns() - start, time.process_time_ns() - busy
            if counter is not None and before is not None:
                series[label].instructions.append(counter.read().since(before))
            series[label].wall_ms.append(wall / 1e6)
            series[label].cpu_ms.append(cpu / 1e6)
    return series


def _counter() -> tuple[Counter | None, str | None]:
    """A counter of instructions for the threads that the sessions have by now, or why there is none."""
    try:
        return Counter(), None
    except Unavailable as error:
        return None, str(error)


def _count_summary(counts: Sequence[int | None]) -> dict[str, float] | None:
    """Median, p10, p90 and relative spread; None unless every round was counted."""
    whole = [count for count in counts if count is not None]
    if not whole or len(whole) < len(counts):
        return None
    p10, median, p90 = (float(value) for value in np.percentile(whole, (10, 50, 90)))
    return {"median": median, "p10": p10, "p90": p90, "spread": (p90 - p10) / median if median else 0.0}


def backend_version(backend: str) -> tuple[str, str | None]:
    """The backend's own name and the version of the package that is called so. Raises `Unavailable` if it is not
    here.
    """
    name = find_backend(backend).name
    try:
        return name, version(name)
    except PackageNotFoundError:
        return name, None


def _ratio(first: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    p10, median, p90 = (float(value) for value in np.percentile(np.asarray(first) / np.asarray(other), (10, 50, 90)))
    return {"median": median, "p10": p10, "p90": p90}
