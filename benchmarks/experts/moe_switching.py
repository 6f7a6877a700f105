"""Measures what changing the task costs at run time, and what three tasks take in memory beside one.

    python -m benchmarks.experts.moe_switching

M³ViT tiny at 128×256 and micro at 64×64 with three tasks, random weights and spread routers, one thread. Time: calls of
`run(tasks="depth")` in pairs, after a call of the same task and after one of another, in turns. Memory: proportional
set size of a process of its own that runs one task, all three from one bundle, or three bundles of one task each.
Writes ``results/moe_switching.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from mtlc.export import export_bundle
from mtlc.hw.measure.in_turns import summary
from mtlc.hw.measure.this_machine import this_machine
from mtlc.program.program import ModelSource, Program
from mtlc.runtime import Session
from mtlc.tasks.task import TaskSpec
from mtlc.zoo.m3vit import m3vit

RESULTS = Path(__file__).parents[1] / "results" / "moe_switching.json"
TASKS = {"semseg": 7, "depth": 1, "normals": 3}
SIZES = {"tiny": (128, 256), "micro": (64, 64)}
ROUNDS = {"tiny": 150, "micro": 1500}

# What a process of its own does: open bundles, run tasks, say what it holds. No torch in it.
CHILD = """
import sys, json, numpy as np
from mtlc.runtime import Session
paths, tasks, shape = json.loads(sys.argv[1])
x = np.zeros(shape, np.float32)
def pss():
    text = open("/proc/self/smaps_rollup").read()
    return int(next(l for l in text.splitlines() if l.startswith("Pss:")).split()[1]) * 1024
before = pss()
sessions = [Session(path, threads=1) for path in paths]
for session in sessions:
    for task in tasks:
        if task in session.tasks:
            for _ in range(3): session.run(x, task)
print(json.dumps([before, pss()]))
"""


def program(size: str, tasks: list[str]) -> Program:
    """The three-task network, or what is left of it when other tasks' gates and heads are dropped: equal weights."""
    torch.manual_seed(0)
    module = m3vit(size, tasks=TASKS, image_size=SIZES[size]).eval()
    with torch.no_grad():
        for _, router in module.routers():
            router.weight.normal_(std=0.3)
    if len(tasks) < len(TASKS):
        module.keep_tasks(tasks)
    specs = tuple(TaskSpec(task, "mse", "mse") for task in tasks)
    return Program(module, specs, {"image": torch.zeros(2, 3, *SIZES[size])}, ModelSource("mtlc.zoo:m3vit", {}))


def switching(path: Path, size: str) -> dict[str, object]:
    """Microseconds by which a call after another task is slower than one after the same task."""
    x = np.random.default_rng(0).standard_normal((1, 3, *SIZES[size])).astype(np.float32)
    with Session(path, threads=1) as session:
        for task in TASKS:
            session.run(x, task)
        same, switched, differences = [], [], []
        for turn in range(ROUNDS[size] + 20):
            pair = []
            # Which of the two comes first changes from turn to turn; the task before is all that differs.
            for before in ("depth", "semseg") if turn % 2 else ("semseg", "depth"):
                session.run(x, before)
                started = time.perf_counter_ns()
                session.run(x, "depth")
                pair.append((before, (time.perf_counter_ns() - started) / 1e3))
            if turn >= 20:
                found = dict(pair)
                same.append(found["depth"])
                switched.append(found["semseg"])
                differences.append(found["semseg"] - found["depth"])
        # A bundle's own part: the same calls without the networks' time, which a profile of microseconds drowns in.
        started = time.perf_counter_ns()
        for _ in range(10_000):
            session.programs("semseg")
            session.programs("depth")
        lookup = (time.perf_counter_ns() - started) / 1e3 / 20_000
    p25, median, p75 = (float(v) for v in np.percentile(differences, (25, 50, 75)))
    return {
        "same_us": summary(same), "switched_us": summary(switched), "rounds": ROUNDS[size],
        "difference_us": {"median": median, "p25": p25, "p75": p75}, "choosing_programs_us": lookup,
    }  # fmt: skip


def added(code: str, argument: list[object]) -> int:
    """Bytes that a process of its own says it added, the median of three."""
    found = []
    for _ in range(3):
        out = subprocess.run(
            [sys.executable, "-c", code, json.dumps(argument)], capture_output=True, text=True, check=True
        )
        before, after = json.loads(out.stdout)
        found.append(after - before)
    return int(np.median(found))


def memory(paths: list[Path], tasks: list[str], size: str) -> int:
    """Bytes that opening the bundles and running the tasks adds to a process."""
    return added(CHILD, [[str(p) for p in paths], tasks, [1, 3, *SIZES[size]]])


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    results = {}
    with TemporaryDirectory() as folder:
        for size in SIZES:
            samples = {"image": torch.randn(4, 3, *SIZES[size], generator=torch.Generator().manual_seed(0))}
            together = Path(folder) / f"{size}-all"
            report = export_bundle(program(size, list(TASKS)), together, samples=samples, experts="queue")
            alone = {}
            for task in TASKS:
                alone[task] = Path(folder) / f"{size}-{task}"
                export_bundle(program(size, [task]), alone[task], samples=samples, experts="queue")
            heads = {p["name"]: p["weights_bytes"] for p in report["programs"] if p["name"].startswith("head-")}
            one, three = memory([together], ["depth"], size), memory([together], list(TASKS), size)
            separate = memory(list(alone.values()), list(TASKS), size)
            others = sum(bytes_ for name, bytes_ in heads.items() if name != "head-depth")
            results[size] = {
                "switching": switching(together, size),
                "memory_bytes": {
                    "one_task": one, "three_tasks": three, "three_bundles": separate, "other_heads_weights": others,
                    "three_over_one_plus_heads": three / (one + others),
                    "three_bundles_over_three_tasks": separate / three,
                },
                "disk_bytes": {
                    "three_tasks": report["bytes"],
                    "three_bundles": sum(f.stat().st_size for p in alone.values() for f in p.iterdir()),
                },
            }  # fmt: skip
            print(size, json.dumps(results[size], indent=1))
    RESULTS.write_text(json.dumps({"device": this_machine(), "threads": 1, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
