"""Measures what a small memory for experts costs, under budgets from all experts to an eighth of them.

    python -m benchmarks.experts.expert_cache

The shipped M³ViT micro networks of both trainings with their experts outside the graphs, on calibration scenes one at a
time, one thread: one task all the time, and the three tasks in turn. Outputs are compared with those of the bundle that
holds all its experts; resident memory is what the system counts for the expert file. Writes
``results/expert_cache.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.experts.extraction import TRAININGS, opened
from mtlc.evaluation.splits import fetch
from mtlc.export import export_bundle
from mtlc.hw.measure.in_turns import summary
from mtlc.hw.measure.this_machine import this_machine
from mtlc.runtime import Session

RESULTS = Path(__file__).parents[1] / "results" / "expert_cache.json"
BUDGETS = (1.0, 0.5, 0.25, 0.125)
FRAMES = 100


def resident(file: Path) -> int:
    """Resident bytes of this process's mappings of a file."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = line.endswith(str(file))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


def run(
    path: Path, share: float, tasks: tuple[str, ...], frames: np.ndarray, expected: list[np.ndarray]
) -> dict[str, Any]:
    with Session(path) as session:
        total = session.expert_cache().total_bytes
    times, most = [], 0
    with Session(path, threads=1, expert_bytes=int(share * total)) as session:
        for index in range(FRAMES):
            task = tasks[index % len(tasks)]
            x = frames[index % len(frames)][None]
            started = time.perf_counter()
            output = session.run(x, task)[task]
            times.append((time.perf_counter() - started) * 1e3)
            np.testing.assert_array_equal(output, expected[index])
            most = max(most, resident((path / "experts.bin").resolve()))
        found = session.expert_cache()
    return {
        "budget_bytes": found.budget_bytes, "latency_ms": summary(times[10:]), "hit_rate": found.hit_rate,
        "bytes_read_per_frame": found.bytes_read / FRAMES, "prefetched": found.prefetched,
        "peak_bytes": found.peak_bytes, "most_resident_bytes": most,
    }  # fmt: skip


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for training in TRAININGS:
        one = opened(training, 0, Path("data/moe"))
        frames = fetch(one.splits.calibration, range(32))["image"].numpy()
        with TemporaryDirectory() as folder:
            paths = {form: Path(folder) / form for form in ("cached", "queue")}
            for form, path in paths.items():
                export_bundle(one.program, path, samples={"image": torch.from_numpy(frames[:8])}, experts=form)
            for label, tasks in {"depth": ("depth",), "three tasks in turn": one.program.task_names}.items():
                with Session(paths["cached"], threads=1) as session:
                    pairs = [(frames[i % 32][None], tasks[i % len(tasks)]) for i in range(FRAMES)]
                    expected = [session.run(x, task)[task] for x, task in pairs]
                with Session(paths["queue"], threads=1) as session:
                    inside = []
                    for x, task in pairs:
                        started = time.perf_counter()
                        session.run(x, task)
                        inside.append((time.perf_counter() - started) * 1e3)
                key = f"{training}, {label}"
                results[key] = {"in the graph": {"latency_ms": summary(inside[10:])}}
                for share in BUDGETS:
                    results[key][f"{share:.1%}"] = run(paths["cached"], share, tasks, frames, expected)
                print(key, json.dumps(results[key], indent=1))
    RESULTS.write_text(json.dumps({"device": this_machine(), "frames": FRAMES, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
