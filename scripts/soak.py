"""Runs a bundle for long, with switches of task and width, threads and reopened sessions, and watches what it holds.

    python scripts/soak.py BUNDLE [--runs N] [--switches N] [--threads N] [--backend NAME] [--seed N] [--out FILE.json]

Of N runs, some come after a switch to another set of tasks and another configuration, drawn from the seed. Every output
is compared with the first of its tasks and configuration, to the bit. Now and then the session is closed and opened
again, another one is opened beside it, and several threads run the same session at once. The resident memory, the file
descriptors, the threads and the temporary files of this process are counted then, at every hundredth of the way.

Fails, with exit code 1, if an output differs, or if the second half holds more than the first did after it had seen
everything once: file descriptors, threads or temporary files at all, memory by more than 2 % and 4 MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import mtlc
from mtlc.files import scratch_folder, write_json
from mtlc.runtime import Session
from mtlc.runtime.random_inputs import random_inputs

_WARM = 0.2
"""The share of the way after which everything was seen once."""
_MEMORY = 0.02, 4 << 20
"""What memory may grow by: a share, and bytes, for allocators keep what they once had."""


@dataclass(frozen=True)
class Held:
    """What the process holds after so many runs."""

    runs: int
    memory_bytes: int
    descriptors: int
    threads: int
    scratch_files: int


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--switches", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=4, help="that run one session at once, now and then")
    parser.add_argument("--samples", type=int, default=100, help="how often to count what is held")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    with scratch_folder("soak") as folder:
        tempfile.tempdir = str(folder)  # what other processes have there is not counted
        found = soak(given.bundle, given.runs, given.switches, given.threads, given.backend, given.seed, given.samples)
        tempfile.tempdir = None
    if given.out is not None:
        write_json(given.out, found)
    print(json.dumps({key: value for key, value in found.items() if key != "held"}, indent=1))
    return 1 if found["wrong"] else 0


def soak(
    bundle: Path,
    runs: int,
    switches: int,
    threads: int = 4,
    backend: str = "auto",
    seed: int = 0,
    samples: int = 100,
    held: Callable[[], dict[str, int]] | None = None,
) -> dict[str, Any]:
    """What was run and held, and under ``wrong`` what is wrong, a line each.

    `held` counts what the process holds, `samples` times on the way.
    """
    one = _Soak(bundle, threads, backend, seed)
    begun, counted = time.perf_counter(), list[Held]()
    every = max(runs // samples, 1)
    for number in range(runs):
        if number % every == 0:
            one.shake()
            counted.append(Held(number, **(held or held_now)()))
        one.run(number * switches // runs != (number - 1) * switches // runs)
    one.close()
    return {
        "kind": "measured", "bundle": bundle.name, "backend": one.backend, "mtlc": mtlc.__version__, "seed": seed,
        "runs": one.runs, "switches": one.switches, "sessions": one.sessions, "outputs": len(one.known),
        "seconds": round(time.perf_counter() - begun, 1), "wrong": one.wrong + grown(counted),
        "held": [asdict(sample) for sample in counted],
    }  # fmt: skip


def grown(samples: Sequence[Held]) -> list[str]:
    """What the second half of the samples has more of than the first half after its beginning, a line each."""
    first = samples[int(_WARM * len(samples)) : len(samples) // 2]
    second = samples[len(samples) // 2 :]
    if not first or not second:
        return []
    found = []
    for name in ("descriptors", "threads", "scratch_files"):
        before, after = (max(getattr(sample, name) for sample in half) for half in (first, second))
        if after > before:
            found.append(f"{name}: {before} in the first half, {after} in the second")
    share, least = _MEMORY
    before, after = (median(sample.memory_bytes for sample in half) for half in (first, second))
    if after - before > max(share * before, least):
        found.append(f"memory: {before / 2**20:.1f} MiB in the first half, {after / 2**20:.1f} MiB in the second")
    return found


def held_now() -> dict[str, int]:
    """What this process holds: resident memory, file descriptors, threads, and its folders of unpacked bundles."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "scratch_files": len(list(Path(tempfile.gettempdir()).glob("mtlc-*"))),
    }


class _Soak:
    def __init__(self, bundle: Path, threads: int, backend: str, seed: int) -> None:
        self._bundle, self._threads, self._asked, self._draw = bundle, threads, backend, random.Random(seed)
        self.runs = self.switches = self.sessions = 0
        self.known: dict[tuple[str | None, tuple[str, ...] | None], dict[str, bytes]] = {}
        self.wrong: list[str] = []
        self._open()
        self.backend = self._session.backend
        self._x = random_inputs(self._session.manifest, 1)
        names = tuple(self._session.tasks)
        self._tasks = [None, *((name,) for name in names), names[:2], names[::-1]]
        self._now: tuple[str, ...] | None = None

    def run(self, switch: bool) -> None:
        """One run; with `switch` of other tasks in another configuration."""
        if switch:
            self.switches += 1
            self._session.configure(self._draw.choice(self._session.configurations))
            self._now = self._draw.choice(self._tasks)
        self._compare(self._now, self._session.run(self._x, self._now))
        self.runs += 1

    def shake(self) -> None:
        """Several threads at once, a second session beside, and the first one closed and opened again."""
        tasks = self._draw.choice(self._tasks)
        with ThreadPoolExecutor(self._threads) as pool:
            found = list(pool.map(lambda _: self._session.run(self._x, tasks), range(4 * self._threads)))
        for outputs in found:
            self._compare(tasks, outputs)
        self.runs += len(found)
        with Session(self._bundle, self._asked, threads=2) as other:
            other.run(self._x)
        self.runs += 1
        name = self._session.configuration.name
        self._session.close()
        self._open()
        self._session.configure(name)
        self.sessions += 1

    def close(self) -> None:
        self._session.close()

    def _open(self) -> None:
        self._session = Session(self._bundle, self._asked, threads=1)
        self.sessions += 1

    def _compare(self, tasks: tuple[str, ...] | None, outputs: dict[str, np.ndarray]) -> None:
        key = self._session.configuration.name, tasks
        found = {task: array.tobytes() for task, array in outputs.items()}
        if self.known.setdefault(key, found) != found and len(self.wrong) < 10:
            different = [task for task, data in found.items() if data != self.known[key].get(task)]
            self.wrong.append(f"run {self.runs}: configuration {key[0]!r}, tasks {different}: other than before")


if __name__ == "__main__":
    sys.exit(main())
