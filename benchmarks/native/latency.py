"""Measures the C library beside the Python runtime: what it takes to open a bundle, to run it, and of memory and disk.

    python -m benchmarks.native.latency --out benchmarks/results/native.json

Both run the same bundles in the same onnxruntime with one thread, in fresh processes that take turns (A B A B …): the
C library as ``mtlc-run bench``, Python as a few lines around `Session`. The time of the processor stands beside the
clock's, as other processes disturb it less. Peak memory is what the system counts for the process. The library is built
here, as docs/native.md says.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import onnxruntime
import torch

from benchmarks.runtime.runtime_overhead import tiny
from mtlc.export.bundle.write_bundle import export_bundle
from mtlc.hw.measure.this_machine import this_machine
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec

ROOT = Path(__file__).parents[2]
ENGINE = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
OUTPUTS = {"semseg": 9, "depth": 1, "normals": 3, "edge": 1, "sal": 2}

PYTHON = """
import json, re, sys, time
begun, cpu = time.perf_counter(), time.process_time()
import numpy as np
from mtlc.runtime import Session
tasks = sys.argv[3].split(",")
session = Session(sys.argv[1], threads=1)
x = np.zeros([1 if isinstance(n, str) else n for n in session.manifest.inputs[0].shape], np.float32)
opened = time.perf_counter()
session.run(x, tasks)
first, first_cpu = time.perf_counter(), time.process_time()
times = []
for _ in range(int(sys.argv[2])):
    start = time.perf_counter()
    session.run(x, tasks)
    times.append(1e3 * (time.perf_counter() - start))
used = time.process_time() - first_cpu
print(json.dumps({
    "ready_ms": 1e3 * (first - begun), "ready_cpu_ms": 1e3 * (first_cpu - cpu),
    "median_ms": sorted(times)[len(times) // 2],
    "cpu_ms": 1e3 * used / len(times),
    "peak_rss_kb": int(re.findall(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[0]),
}))
"""
FIELDS = ("ready_ms", "ready_cpu_ms", "median_ms", "cpu_ms", "peak_rss_kb")


def shipped(path: Path) -> None:
    """The shipped network with five tasks at 64², untrained: what it computes does not matter here."""
    torch.manual_seed(0)
    source = ModelSource("mtlc.zoo:mtl_resnet", {"tasks": OUTPUTS})
    specs = tuple(TaskSpec(task, "mse", "mse") for task in OUTPUTS)
    samples = {"image": torch.rand(3, 3, 64, 64)}
    export_bundle(Program(source.build().eval(), specs, {"image": samples["image"][:2]}, source), path, samples=samples)


def build(folder: Path) -> Path:
    """The library with its program, built in `folder`."""
    for command in (["cmake", "-S", str(ROOT / "native"), "-B", str(folder)], ["cmake", "--build", str(folder)]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def in_c(program: Path, bundle: Path, tasks: Sequence[str], runs: int) -> dict[str, float]:
    """What one process of mtlc-run measures. It is ready when the first run has ended."""
    command = [str(program), "bench", str(bundle), "--tasks", ",".join(tasks), "--runs", str(runs), "--threads", "1"]
    found = json.loads(
        subprocess.run([*command, "--engine", str(ENGINE), "--json"], check=True, capture_output=True).stdout
    )
    # Of the first run only the clock's time is told; with one thread the processor's is no more.
    ready = {"ready_ms": found["open_ms"] + found["first_ms"], "ready_cpu_ms": found["open_cpu_ms"] + found["first_ms"]}
    return {name: (found | ready)[name] for name in FIELDS}


def in_python(bundle: Path, tasks: Sequence[str], runs: int) -> dict[str, float]:
    command = [sys.executable, "-c", PYTHON, str(bundle), str(runs), ",".join(tasks)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return {name: found[name] for name in FIELDS}


def quartiles(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = (float(value) for value in np.percentile(values, (25, 50, 75)))
    return {"median": middle, "p25": low, "p75": high}


def measure(program: Path, bundle: Path, tasks: Sequence[str], rounds: int, runs: int) -> dict[str, Any]:
    """The quartiles of every figure over the rounds, for C and Python in turns."""
    taken: dict[str, list[dict[str, float]]] = {"c": [], "python": []}
    for turn in range(rounds + 1):
        found = {"c": in_c(program, bundle, tasks, runs), "python": in_python(bundle, tasks, runs)}
        if turn:  # the files are in the page cache then
            for side, one in found.items():
                taken[side].append(one)
    return {
        side: {name: quartiles([one[name] for one in each]) for name in FIELDS} | {"runs": runs}
        for side, each in taken.items()
    }


@click.command()
@click.option("--rounds", default=9, type=click.IntRange(3), show_default=True)
@click.option("--runs", default=200, type=click.IntRange(10), show_default=True)
@click.option(
    "--out", default=Path("benchmarks/results/native.json"), type=click.Path(path_type=Path), show_default=True
)
def main(rounds: int, runs: int, out: Path) -> None:
    with TemporaryDirectory() as scratch:
        folder, rows = Path(scratch), []
        built = build(folder / "build")
        tiny(5, folder / "tiny")
        shipped(folder / "mtl_resnet")
        for name, tasks in (
            ("tiny", [f"task{i}" for i in range(5)]),
            ("mtl_resnet", list(OUTPUTS)),
            ("mtl_resnet", ["depth"]),
        ):
            found = measure(built / "mtlc-run", folder / name, tasks, rounds, runs)
            rows.append({"network": name, "tasks": len(tasks), **found})
            told = (f"{side} {one['cpu_ms']['median']:.3f}" for side, one in found.items())
            click.echo(f"{name}, {len(tasks)} tasks, ms of the processor for a run: {', '.join(told)}")
        made = {
            "device": this_machine(),
            "onnxruntime": onnxruntime.__version__,
            "library_bytes": (built / "libmtlc.so").resolve().stat().st_size,
            "engine_bytes": ENGINE.stat().st_size,
            "rounds": rounds,
            "rows": rows,
        }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
