"""Measures start-up: ``mtlc --help``, and what ``import mtlc.runtime`` adds to ``import onnxruntime``.

    python -m benchmarks.runtime.startup --out benchmarks/results/startup.json

Every figure is of fresh processes, which take turns (A B A B …), so that a change of load meets all of them. The
bytecode is compiled and the files are in the page cache: one untimed turn comes first. CPU time stands beside wall
time, as other processes disturb it less. `import mtlc.runtime` is lazy: what a program pays in the end is
`session_adds_ms`.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from mtlc.hw.measure.in_turns import summary
from mtlc.hw.measure.this_machine import this_machine

EMPTY, HELP = "python -c pass", "mtlc --help"
BACKEND, RUNTIME = "import onnxruntime", "import onnxruntime, mtlc.runtime"
SESSION = "import onnxruntime; from mtlc.runtime import Session"
LIMITS = {"help_seconds": 0.25, "runtime_adds_ms": 30.0}


def commands() -> dict[str, list[str]]:
    """The processes that are timed, by what they are called in the result."""
    script = Path(sys.executable).with_name("mtlc")
    front = [str(script)] if script.exists() else [sys.executable, "-m", "mtlc.cli"]
    return {
        EMPTY: [sys.executable, "-c", "pass"],
        HELP: [*front, "--help"],
        BACKEND: [sys.executable, "-c", BACKEND],
        RUNTIME: [sys.executable, "-c", RUNTIME],
        SESSION: [sys.executable, "-c", SESSION],
    }


Times = dict[str, list[float]]


def measure(rounds: int) -> tuple[Times, Times]:
    """Wall and CPU times in ms, by command."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    wall: Times = {name: [] for name in commands()}
    cpu: Times = {name: [] for name in commands()}
    for turn in range(rounds + 1):
        for name, command in commands().items():
            busy, started = children_seconds(), time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
            if turn:
                wall[name].append((time.perf_counter() - started) * 1e3)
                cpu[name].append((children_seconds() - busy) * 1e3)
    return wall, cpu


def children_seconds() -> float:
    """CPU seconds of the processes that this one started and that ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def added(times: Times, name: str, to: str) -> float:
    """The median over the turns of what one command takes longer than another."""
    return statistics.median(a - b for a, b in zip(times[name], times[to], strict=True))


def figures(times: Times) -> dict[str, float]:
    return {
        "help_seconds": statistics.median(times[HELP]) / 1e3,
        "help_adds_ms": added(times, HELP, EMPTY),
        "runtime_adds_ms": added(times, RUNTIME, BACKEND),
        "session_adds_ms": added(times, SESSION, BACKEND),
    }


def result(wall: Times, cpu: Times) -> dict[str, Any]:
    values = figures(wall)
    return {
        "device": this_machine(),
        "rounds": len(wall[HELP]),
        **values,
        "limits": LIMITS,
        "within_limits": all(values[name] < limit for name, limit in LIMITS.items()),
        "cpu": figures(cpu),
        "wall_ms": {name: summary(series) for name, series in wall.items()},
        "cpu_ms": {name: summary(series) for name, series in cpu.items()},
    }


@click.command()
@click.option("--rounds", default=25, type=click.IntRange(15), show_default=True)
@click.option(
    "--out", default=Path("benchmarks/results/startup.json"), type=click.Path(path_type=Path), show_default=True
)
def main(rounds: int, out: Path) -> None:
    made = result(*measure(rounds))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(made, indent=1) + "\n")
    click.echo(
        f"mtlc --help {made['help_seconds']:.3f} s; mtlc.runtime adds {made['runtime_adds_ms']:.1f} ms to onnxruntime, "
        f"its Session {made['session_adds_ms']:.1f} ms"
    )


if __name__ == "__main__":
    main()
