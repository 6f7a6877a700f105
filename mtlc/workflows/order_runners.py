"""Runs work orders: in processes of this machine, or on a Ray cluster; each tells how it gets on."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

from mtlc.compress.ray_cluster import Cluster
from mtlc.log import Log
from mtlc.workflows.work_order import Failure, WorkOrder, as_json, do

Say = Callable[[int, str], None]
"""Takes the place of an order and a line about its progress."""
Outcome = tuple[int, Failure | None]
"""The place of an order, and why it failed; None where it is done."""


class Runner(Protocol):
    """Does orders in any order, and yields each when it has ended. One that fails does not stop the others."""

    def run(self, orders: Sequence[WorkOrder], say: Say) -> Iterator[Outcome]: ...


class InProcesses:
    """Does `jobs` orders at a time, each in a process of its own: what one breaks is its own, and its memory goes."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs

    def run(self, orders: Sequence[WorkOrder], say: Say) -> Iterator[Outcome]:
        told: queue.Queue[tuple[int, str | None, Failure | None]] = queue.Queue()
        waiting = list(enumerate(orders))
        running: dict[int, subprocess.Popen[str]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self._jobs:
                    place, order = waiting.pop(0)
                    running[place] = _started(order)
                    threading.Thread(target=_listen, args=(place, running[place], told), daemon=True).start()
                place, line, failure = told.get()
                if line is not None:
                    say(place, line)
                    continue
                del running[place]
                yield place, failure
        finally:  # also where the caller stops listening: what runs is stopped, and goes on from its folder next time
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()


def _started(order: WorkOrder) -> subprocess.Popen[str]:
    # The search path goes along: a caller in Python may have changed it.
    paths = os.pathsep.join(dict.fromkeys(path or os.getcwd() for path in sys.path))
    quiet = [] if sys.warnoptions else ["-W", "ignore"]
    process = subprocess.Popen(
        [sys.executable, *quiet, "-m", "mtlc.workflows.work_order"], env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it died at once: whoever listens says so
        process.stdin.write(as_json(order))
        process.stdin.close()
    return process


def _listen(place: int, process: subprocess.Popen[str], told: queue.Queue[Any]) -> None:
    """Pass on what a process tells, and at last how it ended."""
    assert process.stdout is not None
    ended: Failure | None = Failure("", 1)
    for text in process.stdout:
        values = json.loads(text)
        if "line" in values:
            told.put((place, values["line"], None))
        else:
            ended = Failure(*values["failed"]) if "failed" in values else None
    code = process.wait()
    if ended is not None and not ended.line:
        died = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        ended = Failure(f"its process {died}, perhaps for want of memory; run again with fewer --jobs", 1)
    told.put((place, None, ended))


class OnRay:
    """Does orders on a Ray cluster, `jobs` at a time (None: as many as its machines have room for).

    Each takes as many cores as it has threads, and a GPU where its device is one. All machines have the paths of the
    orders. What a machine that dies was at is done on another one, from what is in its folder.
    """

    def __init__(self, cluster: Cluster, jobs: int | None = None) -> None:
        self._cluster, self._jobs = cluster, jobs

    def run(self, orders: Sequence[WorkOrder], say: Say) -> Iterator[Outcome]:
        if not orders:
            return
        tasks = [(do, order) for order in orders]
        cores = max(order.threads or 1 for order in orders)
        gpus = int(any((order.device or "").startswith("cuda") for order in orders))
        for place, error in self._cluster.run(tasks, say, cores=cores, gpus=gpus, at_once=self._jobs):
            yield place, None if error is None else Failure.of(error)


def alone(order: WorkOrder, runner: Runner, log: Log) -> None:
    """Do one order. Raises why it failed."""
    for _, failure in runner.run([order], lambda _, line: log(line)):
        if failure is not None:
            raise failure.error()
