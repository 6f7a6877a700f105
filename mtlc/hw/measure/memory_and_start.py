"""Measures the memory and start of a bundle where nothing else is: in a fresh process of its own.

The resident peak of a process that has run a network before says nothing of the next one, so each figure comes from a
child that imports the backend, notes what that alone takes, opens the bundle and runs it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import mtlc
from mtlc.errors import UserError
from mtlc.files import scratch_folder
from mtlc.hw.measure.in_turns import Setting
from mtlc.runtime.backends.find_backend import find_backend

_CODE = "from mtlc.hw.measure.memory_and_start import child; child()"
_STATUS = Path("/proc/self/status")
_RUNS = 3
_TIMEOUT_S = 600


def footprint(
    setting: Setting,
    inputs: np.ndarray | Mapping[str, np.ndarray],
    tasks: Iterable[str] | str | None = None,
    processes: int = 3,
) -> dict[str, Any]:
    """Resident memory in bytes and the time to start in ms of a bundle: medians over fresh `processes`.

    ``peak_bytes`` is the largest resident set (VmHWM: pages of mapped weights that were touched count) while the bundle
    is opened and run a few times; ``baseline_bytes`` is the largest one before that, with Python, numpy and the backend
    imported; ``added_bytes`` is the difference. ``cold_ms`` is the time from opening the bundle to the end of its first
    run, with the files in the page cache; ``cold_min_ms`` and ``cold_max_ms`` are the extremes. Where the system does
    not tell a process its peak, the bytes are None and ``why`` says so.

    Raises `UserError` if a child fails.
    """
    if processes < 1:
        raise UserError(f"processes = {processes}: must be 1 or more")
    named = tasks if tasks is None or isinstance(tasks, str) else list(tasks)
    with scratch_folder("footprint") as folder:
        arrays = Path(folder) / "inputs.npz"
        names = None if isinstance(inputs, np.ndarray) else list(inputs)
        np.savez(arrays, *([inputs] if isinstance(inputs, np.ndarray) else inputs.values()))
        asked = {
            "setting": {**asdict(setting), "path": str(Path(setting.path).resolve())}, "inputs": str(arrays),
            "names": names,
            "tasks": named,
        }  # fmt: skip
        found = [_run_child(asked, str(setting.path)) for _ in range(processes)]
    cold = [one["cold_ms"] for one in found]
    told = all(one["peak_bytes"] is not None for one in found)
    memory: dict[str, int | None] = dict.fromkeys(("baseline_bytes", "peak_bytes", "added_bytes"))
    if told:
        memory = {key: int(statistics.median(one[key] for one in found)) for key in memory}
    return {
        "kind": "measured",
        "processes": processes,
        **memory,
        "cold_ms": statistics.median(cold),
        "cold_min_ms": min(cold),
        "cold_max_ms": max(cold),
        "why": None if told else f"{_STATUS} does not say the peak of a process here",
    }


def child() -> None:
    """What the fresh process does: reads the request from stdin, and writes its figures to stdout as JSON."""
    asked = json.load(sys.stdin)
    with np.load(asked["inputs"]) as arrays:
        made = [arrays[name] for name in arrays.files]
    inputs = made[0] if asked["names"] is None else dict(zip(asked["names"], made, strict=True))
    setting = Setting(**asked["setting"])
    find_backend(setting.backend)
    baseline = _peak()
    start = time.perf_counter()
    with setting.session() as session:
        session.run(inputs, asked["tasks"])
        cold = time.perf_counter() - start
        for _ in range(_RUNS - 1):
            session.run(inputs, asked["tasks"])
        peak = _peak()
    added = None if peak is None or baseline is None else peak - baseline
    figures = {"baseline_bytes": baseline, "peak_bytes": peak, "added_bytes": added, "cold_ms": cold * 1e3}
    json.dump(figures, sys.stdout)


def _run_child(asked: Mapping[str, Any], bundle: str) -> dict[str, Any]:
    root = str(Path(mtlc.__file__).parents[1])
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", _CODE]
    try:
        done = subprocess.run(
            command, input=json.dumps(asked), capture_output=True, text=True, check=False, env=environment,
            timeout=_TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(f"{bundle}: a fresh process did not run it within {_TIMEOUT_S} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        why = f"signal {-done.returncode}" if done.returncode < 0 else lines[-1] if lines else "no message"
        raise UserError(f"{bundle}: a fresh process could not run it: {why}")
    return dict(json.loads(done.stdout))


def _peak() -> int | None:
    """The largest resident set of this process so far, in bytes. (ru_maxrss would hold the parent's before the
    exec.)
    """
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
