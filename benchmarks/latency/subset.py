"""Measures what a device pays for one task: a bundle asked for all tasks, and for each one alone, in turns.

    python -m benchmarks.latency.subset --out benchmarks/results/subset.json

The original network of the job is exported as trunk and heads, and fused. In the fused bundle one task costs what all
cost; in the split one it costs its own path.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np

from mtlc.evaluation.splits import fetch
from mtlc.export.bundle.write_bundle import export_bundle
from mtlc.hw.measure.in_turns import summary
from mtlc.hw.measure.this_machine import this_machine
from mtlc.job.job import load_job
from mtlc.runtime import Session
from mtlc.workflows.opened_job import open_job


@click.command()
@click.option("--job", default=Path("examples/scenes/prune.toml"), type=click.Path(path_type=Path), show_default=True)
@click.option("--rounds", default=200, show_default=True, type=click.IntRange(2))
@click.option("--out", default=Path("benchmarks/results/subset.json"), type=click.Path(path_type=Path))
def main(job: Path, rounds: int, out: Path) -> None:
    opened = open_job(load_job(job))
    images = fetch(opened.splits.validation, range(3))[opened.program.inputs[0]]
    one = np.ascontiguousarray(images[:1].numpy())
    asked: dict[str, tuple[str, ...]] = {"all": opened.program.task_names}
    asked |= {task: (task,) for task in opened.program.task_names}
    times: dict[str, dict[str, list[float]]] = {}
    with TemporaryDirectory() as scratch:
        for form, fuse in (("split", False), ("fused", True)):
            path = Path(scratch) / form
            export_bundle(opened.program, path, samples={opened.program.inputs[0]: images}, fuse=fuse)
        sessions = {form: Session(Path(scratch) / form, threads=1) for form in ("split", "fused")}
        for turn in range(rounds + 5):
            for form, session in sessions.items():
                for name, tasks in asked.items():
                    session.run(one, tasks)  # untimed: brings its weights back into the caches
                    started = time.perf_counter()
                    session.run(one, tasks)
                    if turn >= 5:
                        elapsed = 1e3 * (time.perf_counter() - started)
                        times.setdefault(form, {}).setdefault(name, []).append(elapsed)
        for session in sessions.values():
            session.close()
    found: dict[str, Any] = {"device": this_machine(), "threads": 1, "batch": 1, "rounds": rounds, "kind": "measured"}
    for form, by_task in times.items():
        found[form] = {name: summary(values) for name, values in by_task.items()}
        shares = [statistics.median(v) / statistics.median(by_task["all"]) for n, v in by_task.items() if n != "all"]
        found[form]["one_task_of_all"] = statistics.mean(shares)
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
