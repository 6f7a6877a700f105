"""Prunes the shipped five-task detector by 60 % of its MACs, with several seeds.

    python -m benchmarks.detection.pruned_detector --seed 0 --seed 1 --seed 2

Runs ``examples/detection/prune.toml`` with each seed, whole: pruning, fine-tuning, export, verification, and the
latency of both bundles in turns. Compared is each task's metric on 500 validation scenes before and after. The seeds
start from the same weights and differ in the order and the augmentation of samples. Killed, it goes on where it was.

Expected: the detector, whose labels are sparse, loses more than the dense tasks, and less than 10 % of its mAP.

Writes ``results/pruned_detector.json``.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch

from mtlc.hw.measure.this_machine import this_machine
from mtlc.job.job import Job, load_job
from mtlc.results.run import RunResults
from mtlc.workflows.run import run_job

ROOT = Path(__file__).parents[2]
JOB = ROOT / "examples" / "detection" / "prune.toml"
EXPECTED = -10.0
"""Percent: what the detector may lose of its mAP."""


def with_seed(job: Job, seed: int) -> Job:
    """The job under another seed."""
    return replace(job, file=job.file.model_copy(update={"seed": seed}))


def row(found: RunResults) -> dict[str, Any]:
    """What is kept of a run."""
    after = found.cost.after
    assert after is not None
    return {
        "seed": found.seed,
        "delta_m": found.delta_m.vs_original,
        "macs": after.macs,
        "parameters": after.parameters,
        "bundle_bytes": after.bundle_bytes,
        "tasks": {name: task.after for name, task in found.tasks.items()},
        "map_50": _map_50(found, "after"),
        "latency": _latency(found),
        "missed": found.missed,
    }


def original(found: RunResults) -> dict[str, Any]:
    """The network before, which is the same for all seeds."""
    before = found.cost.before
    assert before is not None
    return {
        "macs": before.macs,
        "parameters": before.parameters,
        "bundle_bytes": before.bundle_bytes,
        "tasks": {
            name: {
                "metric": task.metric, "unit": task.unit, "higher_is_better": task.higher_is_better,
                "value": task.before, "constant": task.constant,
            }
            for name, task in found.tasks.items()
        },
        "map_50": _map_50(found, "before"),
    }  # fmt: skip


def _latency(found: RunResults) -> dict[str, Any] | None:
    """Both bundles' times of one sample in ms, and how many times as fast the pruned one is, without the layers."""
    if found.latency is None:
        return None
    values = found.latency.to_dict()
    sides = {side: {key: values[side][key] for key in ("median_ms", "cpu_median_ms")} for side in ("before", "after")}
    return sides | {key: values[key] for key in ("threads", "batch", "rounds", "ratio", "load", "doubts")}


def _map_50(found: RunResults, side: str) -> float | None:
    details = found.tasks["detection"].details
    return None if details is None else getattr(details, side).get("map_50")


def summary(rows: list[dict[str, Any]], before: dict[str, Any]) -> dict[str, Any]:
    """Mean and spread over the seeds, and whether the expectation was met."""
    changes = [100 * (one["tasks"]["detection"] / before["tasks"]["detection"]["value"] - 1) for one in rows]
    values = {"delta_m": [one["delta_m"] for one in rows], "map_50": [one["map_50"] for one in rows]}
    values |= {name: [one["tasks"][name] for one in rows] for name in before["tasks"]}
    return {
        "mean": {name: statistics.mean(numbers) for name, numbers in values.items()},
        "std": {name: statistics.stdev(numbers) if len(numbers) > 1 else None for name, numbers in values.items()},
        "map_change_percent": statistics.mean(changes),
        "expected_map_change_percent": EXPECTED,
        "met": statistics.mean(changes) > EXPECTED,
    }


@click.command()
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2), show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=ROOT / "runs" / "detection", show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), default=ROOT / "benchmarks" / "results" / "pruned_detector.json"
)
def main(seeds: tuple[int, ...], work: Path, out: Path) -> None:
    torch.set_num_threads(1)
    job = load_job(JOB)
    rows, before = [], {}
    for seed in seeds:
        found = run_job(with_seed(job, seed), work / f"seed-{seed}", log=print)
        rows.append(row(found))
        before = original(found)
        written = {
            "job": str(JOB.relative_to(ROOT)),
            "machine": this_machine(),
            "versions": {name: version(name) for name in ("torch", "onnxruntime", "pycocotools")},
            "before": before,
            "seeds": rows,
            "summary": summary(rows, before),
        }
        out.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
