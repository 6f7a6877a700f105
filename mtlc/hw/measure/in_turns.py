"""Measures latency on this machine's CPU, through the runtime that a device would use.

Bundles are run in turns, A B A B …, so that a change of clock or load meets all of them; medians and the spread are
reported, and CPU time beside wall time, which other processes disturb less. Where the processor lets us, the
instructions that a call retires are counted too: they hardly vary at all. How many times as fast one is as another is
the `paired_ratio` of the rounds. What other processes did meanwhile is recorded; what makes a figure doubtful is said.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from mtlc.errors import Unavailable, UserError
from mtlc.hw.measure.instructions import Counter
from mtlc.hw.measure.machine_load import busy_why, load_since, read_load, wait_quiet
from mtlc.hw.measure.paired_ratio import interval_of_median, is_narrow, paired_ratio
from mtlc.hw.measure.this_machine import this_machine
from mtlc.log import Log, silent, tracked
from mtlc.runtime.backends.find_backend import find_backend
from mtlc.runtime.session import Session

Inputs = np.ndarray | Mapping[str, np.ndarray]
ROUNDS, MOST_ROUNDS = 50, 400
"""Rounds where nobody says how many: the least, and the most, until all figures are known to within ±5 %."""
_MORE_S = 60.0  # no round is added after this time


@dataclass(frozen=True)
class Effort:
    """How much is done for a figure: rounds, and as many more up to `most` (None: none) until all are known to within
    ±5 %; untimed calls before; whether to wait until other processes do little, at most five minutes. `log` hears of
    the waiting.
    """

    rounds: int = ROUNDS
    most: int | None = None
    warmup: int = 5
    wait_quiet: bool = False
    log: Log = silent

    @staticmethod
    def asked(rounds: int | None, wait: bool = False, usual: int = ROUNDS, log: Log = silent) -> Effort:
        """`rounds` exactly; without, `usual`, and up to eight times as many until the figures are known well enough."""
        if rounds is not None:
            return Effort(rounds, wait_quiet=wait, log=log)
        return Effort(usual, usual * MOST_ROUNDS // ROUNDS, wait_quiet=wait, log=log)


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
    rounds: int = ROUNDS,
    warmup: int = 5,
    configurations: Mapping[str, str] = MappingProxyType({}),
    backend: str = "auto",
    effort: Effort | None = None,
) -> dict[str, Any]:
    """`measure_settings` of bundles that all run in one backend with as many threads, which are in the result too.

    `configurations` are what bundles run in, by label, if not their default. `effort` counts before `rounds` and
    `warmup`.
    """
    settings = {label: Setting(path, backend, threads, configurations.get(label)) for label, path in bundles.items()}
    found = measure_settings(settings, inputs, tasks, rounds, warmup, effort)
    name, package = backend_version(backend)
    return {**found, "backend": {"name": name, "version": package}, "threads": threads}


def measure_settings(
    settings: Mapping[str, Setting],
    inputs: Inputs,
    tasks: Iterable[str] | str | None = None,
    rounds: int = ROUNDS,
    warmup: int = 5,
    effort: Effort | None = None,
) -> dict[str, Any]:
    """Wall and CPU time of one call of each bundle, as its setting says, on `inputs`, in ms, and the instructions that
    it retires.

    A round gives every setting one turn: an untimed call, which brings its weights back into the caches, and a timed
    one. The result has ``bundles[label]``, the `summary` of the wall times with ``cpu_median_ms`` (all threads); and,
    for every label but the first, ``speedup[label]``: the `paired_ratio` of first / label. ``load`` is what other
    processes did meanwhile (`load_since`, with ``waited_s``), ``doubts`` say in a line each what makes all figures
    doubtful; a ratio has its own ``doubt``.

    ``bundles[label]["instructions"]`` has ``median``, ``p10``, ``p90`` and ``spread`` of a call in all threads of the
    process, in user space, the caller's Python included; None where they cannot be counted, and ``instructions_why``
    says in a line why.

    `effort` counts before `rounds` and `warmup`. Raises `UserError` for no bundle, too few rounds, or what `Session`
    refuses.
    """
    effort = effort or Effort(rounds, None, warmup)
    if not settings:
        raise UserError("nothing to measure: give at least one bundle")
    if effort.rounds < 2 or effort.warmup < 0:
        raise UserError(
            f"rounds = {effort.rounds}, warmup = {effort.warmup}: two rounds or more, and no negative warm-up"
        )
    if tasks is not None and not isinstance(tasks, str):
        tasks = tuple(tasks)
    sessions = {}
    try:
        for label, setting in settings.items():
            sessions[label] = setting.session()
        waited = wait_quiet(effort.log) if effort.wait_quiet else None
        for session in sessions.values():
            for _ in range(max(effort.warmup, 1)):
                session.run(inputs, tasks)
        counter, why = _counter()
        before = read_load()
        with counter or nullcontext():
            series = _rounds(sessions, inputs, tasks, effort, counter)
        load = load_since(before)
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
        "device": {**this_machine(), "load_1min": load["load_1min"]},
        "batch": int(array.shape[0]),
        "rounds": len(series[first].wall_ms),
        "warmup": effort.warmup,
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
            label: paired_ratio(
                series[first].wall_ms, series[label].wall_ms, series[first].cpu_ms, series[label].cpu_ms
            )
            for label in settings
            if label != first
        },
        "load": {**load, "waited_s": None if waited is None else round(waited, 1)},
        "doubts": _doubts(series, load),
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
    effort: Effort,
    counter: Counter | None,
) -> dict[str, _Series]:
    series = {label: _Series() for label in sessions}
    until = time.perf_counter() + _MORE_S
    for done in tracked(range(max(effort.rounds, effort.most or 0)), "timed rounds, at most"):
        # Not after every round: an interval that is looked at often enough is narrow once by chance.
        enough = done >= effort.rounds and done % effort.rounds == 0 and _known(series)
        if enough or (done >= effort.rounds and time.perf_counter() > until):
            break
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


def _known(series: Mapping[str, _Series]) -> bool:
    """Whether every ratio is known to within ±5 %; of one bundle alone, its time."""
    first, *others = series.values()
    if not others:
        return is_narrow(first.wall_ms)
    return all(is_narrow(np.asarray(first.wall_ms) / np.asarray(one.wall_ms)) for one in others)


def _doubts(series: Mapping[str, _Series], load: dict[str, Any]) -> list[str]:
    """What makes all that was measured doubtful: other processes; of one bundle alone, its own interval."""
    lines = [] if (busy := busy_why(load)) is None else [busy]
    if len(series) == 1:
        (alone,) = series.values()
        if not is_narrow(alone.wall_ms):
            low, high = interval_of_median(alone.wall_ms)
            lines.append(f"after {len(alone.wall_ms)} rounds the median lies between {low:.3g} and {high:.3g} ms")
    return lines


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
