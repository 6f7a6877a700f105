"""Measures a bundle of several widths on the device: switching, bytes, memory, latency, and the governor.

    python -m benchmarks.slimmable.width_switching [--rounds 200]

The bundle is made from the shipped supernet by ``mtlc slim examples/scenes/slim.toml --from examples/scenes/supernet``,
in a temporary folder. Latencies are of one sample, all tasks, one thread, interleaved; beside every named configuration
stands the same network exported alone. Memory is PSS of a process that holds the session, loaded. The load on the
governor is synthetic: busy processes, two for each core, in the middle third of the runs. Writes
``results/width_switching.json``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.evaluation.splits import fetch
from mtlc.export import export_bundle
from mtlc.files import write_json
from mtlc.hw.measure.in_turns import summary
from mtlc.hw.measure.this_machine import this_machine
from mtlc.job.job import load_job
from mtlc.program.program import Program
from mtlc.runtime import Session
from mtlc.workflows.opened_job import open_job
from mtlc.workflows.slim import slim_job

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "scenes"
RESULTS = Path(__file__).parents[1] / "results" / "width_switching.json"

_HOLD = """
import sys, numpy as np
from mtlc.runtime import Session
paths, configured = sys.argv[2:], sys.argv[1]
sessions = [Session(path, threads=1) for path in paths]
x = np.zeros((1, 3, 64, 64), np.float32)
for session in sessions:
    names = session.configurations if configured == "all" else (configured,)
    for name in names:
        session.configure(name)
        session.run(x)
with open("/proc/self/smaps_rollup") as file:
    print(next(int(line.split()[1]) for line in file if line.startswith("Pss:")))
"""


def memory_kb(configured: str, *paths: Path) -> int:
    """PSS of a fresh process that has run these bundles, in the named configuration or in all."""
    command = [sys.executable, "-c", _HOLD, configured, *map(str, paths)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def times(run: Any, rounds: int) -> list[float]:
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        found.append(1000 * (time.perf_counter() - started))
    return found


def switching(bundle: Path, x: np.ndarray, rounds: int) -> dict[str, Any]:
    """ms of configure by name, by budget and preference, and of a run after a switch against one without."""
    rng = np.random.default_rng(0)
    with Session(bundle, threads=1) as session:
        session.load()
        session.configure(budget="50%")
        names = session.configurations
        tasks = list(session.tasks)
        by_name = times(lambda: session.configure(names[int(rng.integers(len(names)))]), rounds)

        def ask() -> None:
            prefer = dict(zip(tasks, rng.random(len(tasks)), strict=True))
            session.configure(budget=f"{rng.uniform(20, 100):.1f}%", prefer=prefer)

        by_budget = times(ask, rounds)
        stay, after = [], []
        for _ in range(rounds):
            session.configure(names[0])
            session.run(x)
            stay += times(lambda: session.run(x), 1)
            session.configure(names[-1])
            session.run(x)
            session.configure(names[0])
            after += times(lambda: session.run(x), 1)
    return {
        "by_name_ms": summary(by_name), "by_budget_and_preference_ms": summary(by_budget),
        "run_ms": summary(stay), "run_after_a_switch_ms": summary(after),
        "after_over_steady": float(np.median(np.array(after) / np.array(stay))),
    }  # fmt: skip


def latencies(bundle: Path, alone: dict[str, Path], x: np.ndarray, rounds: int) -> dict[str, Any]:
    """ms of every named configuration in the bundle and exported alone, interleaved."""
    found: dict[str, dict[str, list[float]]] = {name: {"bundle": [], "alone": []} for name in alone}
    sessions = {name: Session(path, threads=1) for name, path in alone.items()}
    with Session(bundle, threads=1) as session:
        session.load()
        macs = {name: session.configure(name).macs for name in alone}
        for _ in range(rounds):
            for name, single in sessions.items():
                session.configure(name)
                for label, one in (("bundle", session), ("alone", single)):
                    one.run(x)
                    found[name][label] += times(lambda one=one: one.run(x), 1)
    for one in sessions.values():
        one.close()
    return {
        name: {
            "macs": macs[name],
            **{label: summary(values) for label, values in of.items()},
            "bundle_over_alone": float(np.median(np.array(of["bundle"]) / np.array(of["alone"]))),
        }
        for name, of in found.items()
    }


def _burn(stop: Any) -> None:
    while not stop.is_set():
        sum(i * i for i in range(10_000))


def governed(bundle: Path, x: np.ndarray, runs: int) -> dict[str, Any]:
    """Runs quiet, beside busy processes, and quiet, a third each; the widest keeps the target when quiet."""
    context = multiprocessing.get_context("spawn")
    with Session(bundle, threads=1) as session:
        session.calibrate(x)
        quiet = float(np.median(times(lambda: session.run(x), 50)))
        target = 1.5 * quiet
        governor = session.governor(target_ms=target)
        fixed: list[float] = []
        phases: list[dict[str, Any]] = []
        for phase in ("quiet", "load", "quiet again"):
            stop = context.Event()
            busy = (
                [context.Process(target=_burn, args=(stop,)) for _ in range(2 * (os.cpu_count() or 1))]
                if phase == "load"
                else []
            )
            for process in busy:
                process.start()
            if busy:
                time.sleep(2)
            mine, fixed, switches = [], [], governor.switches
            for _ in range(runs // 3):
                mine += times(lambda: governor.run(x), 1)
                fixed += times(lambda: session.run(x), 1)
            stop.set()
            for process in busy:
                process.join()
            phases.append(
                {
                    "phase": phase, "governed_ms": summary(mine), "widest_ms": summary(fixed),
                    "governed_within_target": float(np.mean(np.array(mine) <= target)),
                    "widest_within_target": float(np.mean(np.array(fixed) <= target)),
                    "switches": governor.switches - switches, "macs_at_the_end": governor.configuration.macs,
                }
            )  # fmt: skip
    return {"target_ms": target, "widest_quiet_ms": quiet, "phases": phases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    given = parser.parse_args()
    job = load_job(EXAMPLES / "slim.toml")
    opened = open_job(job, weights=False)
    supernet = Supernet.of(Program.load(EXAMPLES / "supernet"))
    samples = {"image": fetch(opened.splits.calibration, range(8))["image"]}
    x = samples["image"][:1].numpy()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        made = slim_job(job, folder / "out", trained=EXAMPLES / "supernet", log=print).to_dict()
        bundle = folder / "out" / "bundle"
        alone: dict[str, Path] = {}
        for point in made["points"]:
            configuration = Configuration(tuple(point["encoder"].values()), tuple(point["decoders"].values()))
            alone[point["name"]] = folder / f"alone-{len(alone)}"
            export_bundle(supernet.narrow(configuration), alone[point["name"]], samples=samples)
        bytes_alone = {name: sum(f.stat().st_size for f in path.iterdir()) for name, path in alone.items()}
        found = {
            "device": this_machine(),
            "bytes": {"bundle": made["bundle"]["bytes"], "widest": made["bundle"]["widest_bytes"],
                      "ratio": made["bundle"]["bytes"] / made["bundle"]["widest_bytes"],
                      "encoders": made["bundle"]["encoders"],
                      "programs": made["bundle"]["programs"], "each_alone": bytes_alone},
            "memory_kb": {
                "bundle, widest only": memory_kb("default", bundle), "bundle, all named": memory_kb("all", bundle),
                "widest alone": memory_kb("default", alone["default"]),
                "every point alone, at once": memory_kb("default", *alone.values()),
            },
            "switching": switching(bundle, x, given.rounds),
            "latency": latencies(bundle, alone, x, given.rounds),
            "governor": governed(bundle, x, 3 * given.rounds),
        }  # fmt: skip
    write_json(RESULTS, found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
