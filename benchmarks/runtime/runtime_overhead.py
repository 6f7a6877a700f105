"""Measures what `Session.run` adds to the backend's own calls: checks, the plan, and handing tensors on.

    python -m benchmarks.runtime.runtime_overhead --out benchmarks/results/runtime_overhead.json

By hand, the same loaded programs are called one after the other, in the manner that the backend's documentation shows:
``session.run`` of onnxruntime, ``request.infer`` of OpenVINO with inputs and outputs shared, so without any copy
(outputs are then valid until the next call; what `Session.run` returns is the caller's). Calls are in turns, one by
hand and one through the session, the order changing each round; the overhead of a round is the difference, and medians
are reported, by the clock and by time of the processor. One thread, batch 1. A tiny network, where nothing else takes
time, and the shipped one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from mtlc.export.bundle.write_bundle import export_bundle
from mtlc.hw.measure.in_turns import backend_version, summary
from mtlc.hw.measure.this_machine import this_machine
from mtlc.job.job import load_job
from mtlc.program.program import ModelSource, Program
from mtlc.runtime import Session
from mtlc.tasks.task import TaskSpec
from mtlc.workflows.export_job import samples_of
from mtlc.workflows.opened_job import open_job

BACKENDS = ("onnxruntime", "openvino")
LIMIT_US = 15.0
Values = dict[str, np.ndarray]


class Tiny(nn.Module):
    """image (N, 3, 8, 8) ── trunk (N, 4, 8, 8) ── a head (N, 1, 8, 8) for each task, 1×1 convolutions."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 4, 1)
        self.heads = nn.ModuleList(nn.Conv2d(4, 1, 1) for _ in range(tasks))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.trunk(image).relu()
        return {f"task{index}": head(features) for index, head in enumerate(self.heads)}


def tiny(tasks: int, path: Path) -> None:
    torch.manual_seed(0)
    samples = {"image": torch.rand(3, 3, 8, 8)}
    specs = tuple(TaskSpec(f"task{index}", "mse", "mse") for index in range(tasks))
    program = Program(Tiny(tasks).eval(), specs, {"image": samples["image"][:2]}, ModelSource("runtime_overhead:Tiny"))
    export_bundle(program, path, samples=samples)


def by_hand(session: Session) -> Callable[[np.ndarray], Values]:
    """The session's programs, called without it. It must have run once, so that they are loaded."""
    manifest, name = session.manifest, session.manifest.inputs[0].name
    # The very programs that the session has loaded: nothing but the runtime around them differs.
    loaded = [(session._files[program.file].executable, program) for program in manifest.programs]
    if session.backend == "onnxruntime":
        calls = [(executable._session.run, list(program.outputs), program.inputs) for executable, program in loaded]

        def run(x: np.ndarray) -> Values:
            values = {name: x}
            for call, outputs, inputs in calls:
                values.update(zip(outputs, call(outputs, {name: values[name] for name in inputs}), strict=True))
            return values
    else:
        requests = [
            (executable._compiled.create_infer_request(), program.outputs, program.inputs)
            for executable, program in loaded
        ]

        def run(x: np.ndarray) -> Values:
            values = {name: x}
            for request, outputs, inputs in requests:
                request.infer({name: values[name] for name in inputs}, share_inputs=True, share_outputs=True)
                values.update({name: request.get_tensor(name).data for name in outputs})
            return values

    return run


def quartiles(times: dict[str, list[float]]) -> dict[str, float]:
    """Of what a call through the session takes longer than the one by hand in the same round."""
    difference = np.asarray(times["session"]) - np.asarray(times["by_hand"])
    p25, median, p75 = (float(value) for value in np.percentile(difference, (25, 50, 75)))
    return {"p25": p25, "median": median, "p75": p75}


def overhead(path: Path, x: np.ndarray, backend: str, rounds: int) -> dict[str, Any]:
    """Median µs of both ways, and the difference within a round, by the clock and by time of the processor."""
    with Session(path, backend=backend, threads=1) as session:
        given = session.run(x)
        raw, tasks = by_hand(session), {task: info.output for task, info in session.manifest.tasks.items()}
        expected = raw(x)
        for task, output in tasks.items():
            np.testing.assert_array_equal(given[task], expected[output])
        ways: dict[str, Callable[[np.ndarray], object]] = {"by_hand": raw, "session": session.run}
        times: dict[str, list[float]] = {way: [] for way in ways}
        busy_times: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(rounds + 50):
            for way in (*ways,) if turn % 2 else (*reversed(ways),):
                busy, start = time.process_time_ns(), time.perf_counter_ns()
                ways[way](x)
                took, cpu = time.perf_counter_ns() - start, time.process_time_ns() - busy
                if turn >= 50:
                    times[way].append(took / 1e3)
                    busy_times[way].append(cpu / 1e3)
        programs = len(session.programs())
    return {
        "programs": programs,
        "tasks": len(tasks),
        "rounds": rounds,
        **{f"{way}_us": float(np.median(times[way])) for way in ways},
        "overhead_us": quartiles(times),
        "overhead_cpu_us": quartiles(busy_times),
        "session_ms": summary([value / 1e3 for value in times["session"]]),
    }


@click.command()
@click.option("--job", default=Path("examples/scenes/prune.toml"), type=click.Path(path_type=Path), show_default=True)
@click.option(
    "--rounds",
    default=5000,
    show_default=True,
    type=click.IntRange(2),
    help="Of a tiny network; a fifth of the shipped one.",
)
@click.option(
    "--out", default=Path("benchmarks/results/runtime_overhead.json"), type=click.Path(path_type=Path),
    show_default=True
)  # fmt: skip
def main(job: Path, rounds: int, out: Path) -> None:
    torch.set_num_threads(1)
    opened = open_job(load_job(job))
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "kind": "measured", "device": this_machine(), "versions": dict(map(backend_version, BACKENDS)), "threads": 1,
        "batch": 1, "limit_us": LIMIT_US, "rows": rows,
    }  # fmt: skip
    with TemporaryDirectory() as scratch:
        paths = {f"tiny, {tasks} tasks": Path(scratch) / f"tiny-{tasks}" for tasks in (2, 5)}
        for tasks, path in zip((2, 5), paths.values(), strict=True):
            tiny(tasks, path)
        shipped = paths["shipped CNN, 5 tasks"] = Path(scratch) / "shipped"
        samples = samples_of(opened)
        export_bundle(opened.program, shipped, samples=samples, criteria=opened.criteria)
        for network, path in paths.items():
            image = samples["image"][:1].numpy() if path is shipped else np.ones((1, 3, 8, 8), np.float32)
            count = rounds // 5 if path is shipped else rounds
            for backend in BACKENDS:
                row = {
                    "network": network,
                    "backend": backend,
                    **overhead(path, np.ascontiguousarray(image), backend, count),
                }
                rows.append(row)
                wall, cpu = row["overhead_us"], row["overhead_cpu_us"]
                click.echo(
                    f"{network} | {backend} | {row['by_hand_us']:.1f} µs by hand, {wall['median']:+.1f} µs "
                    f"({wall['p25']:+.1f} to {wall['p75']:+.1f}), CPU {cpu['median']:+.1f}"
                )
    result["load_1min"] = this_machine().get("load_1min")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
