"""Compares INT8 of a bundle of several widths with its FP32: bytes, kernels, metrics at all widths, latency.

    mtlc slim examples/scenes/slim.toml --out runs/slim --from examples/scenes/supernet
    python -m benchmarks.quantization.quantization_widths runs/slim/bundle --work runs/slim/bundle-int8 \\
        --samples 64 --control 200 --rounds 50

The bundle is quantised for this machine; every task may lose 1 % with each encoder and each width of its decoder, which
the control sees to in onnxruntime. Metrics are those of the whole validation split, latencies those of one sample with
all tasks, one thread, in turns. The data is that of the job, seed 0; nothing else is random.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch

from benchmarks.quantization.quantization import BACKENDS, kernels
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.evaluation.splits import fetch
from mtlc.export.quantization import quantize_bundle
from mtlc.hw.measure.in_turns import Setting, backend_version, measure_settings
from mtlc.hw.measure.this_machine import this_machine
from mtlc.job.job import load_job
from mtlc.runtime import Session
from mtlc.tasks.task import Limit
from mtlc.workflows.opened_job import open_job

EXAMPLES = Path(__file__).parents[2] / "examples" / "scenes"
RESULTS = Path(__file__).parents[1] / "results" / "quantization_widths.json"
PRECISIONS = ("fp32", "int8")


def sizes(bundle: Path) -> dict[str, int]:
    """Bytes by what they are spent on."""
    files = {file.name: file.stat().st_size for file in bundle.iterdir()}
    graphs = sum(size for name, size in files.items() if name.endswith(".onnx"))
    return {
        "weights": files["weights.bin"],
        "graphs": graphs,
        "manifest": files["manifest.json"],
        "all": sum(files.values()),
    }


def worse(task: Mapping[str, Any], before: float, after: float) -> float:
    """How much worse `after` is, in percent."""
    return 100 * (after / before - 1) * (-1 if task["higher_is_better"] else 1)


def points(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """By task, its points' change in percent (above 0: worse) on the validation split, and how limits are kept."""
    changes: dict[str, list[float]] = {}
    for name, task in tasks.items():
        found = task["validation"]
        changes.setdefault(name.split(".")[1], []).append(worse(task, found["float"], found["int8"]))

    def broken(what: str) -> int:
        """Points whose limit is missed on the control samples."""
        sign = {name: 1 if task["higher_is_better"] else -1 for name, task in tasks.items()}
        return sum(sign[n] * (t["control"][what] - t["control"]["bound"]) < 0 for n, t in tasks.items())

    return {
        "worse_percent": {
            task: {"worst": max(values), "median": median(values), "best": min(values)}
            for task, values in changes.items()
        },
        "count": len(tasks),
        "missed_on_control_with_everything_in_int8": broken("int8_all"),
        "missed_on_control": broken("int8"),
        "missed_on_validation": sum(task["missed"] is not None for task in tasks.values()),
    }


def metrics(bundle: Path, criteria: Criteria, split: Any, backend: str) -> dict[str, dict[str, float]]:
    """Every task's metric on the split in each named configuration."""
    found = {}
    with Session(bundle, backend=backend, threads=1) as session:
        run = lambda batch: {n: torch.from_numpy(a) for n, a in session.run(batch["image"].numpy()).items()}  # noqa: E731
        for name in session.configurations:
            session.configure(name)
            found[name] = evaluate(run, criteria, split).metrics
    return found


def latencies(bundles: Mapping[str, Path], image: np.ndarray, rounds: int) -> dict[str, Any]:
    """By backend and configuration, CPU time in ms of a call in both precisions."""
    found: dict[str, Any] = {}
    with Session(bundles["fp32"]) as session:
        names = session.configurations
    for backend in BACKENDS:
        settings = {
            f"{name} {precision}": Setting(path, backend, 1, name)
            for name in names
            for precision, path in bundles.items()
        }
        rows = measure_settings(settings, image, rounds=rounds)["bundles"]
        found[backend] = {name: {p: rows[f"{name} {p}"]["cpu_median_ms"] for p in PRECISIONS} for name in names}
    return found


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Where the INT8 bundle is put.")
@click.option("--limit", default="1%", show_default=True, help="What every task may lose at each of its points.")
@click.option("--samples", default=128, show_default=True, help="Samples for ranges.")
@click.option("--control", default=400, show_default=True, help="Samples for the decisions.")
@click.option("--rounds", default=100, show_default=True, type=click.IntRange(2))
def main(bundle: Path, work: Path, limit: str, samples: int, control: int, rounds: int) -> None:
    torch.set_num_threads(1)
    opened = open_job(load_job(EXAMPLES / "slim.toml"), weights=False)
    splits, plain = opened.splits, opened.criteria
    limited = Criteria(type(task)(**{**vars(task), "max_drop": Limit.parse(limit)}) for task in plain.tasks)
    started = time.monotonic()
    report = quantize_bundle(
        bundle, work, criteria=limited, calibration=splits.calibration, validation=splits.validation, samples=samples,
        control=control, log=click.echo,
    )  # fmt: skip
    quantised = time.monotonic() - started
    bundles = dict(zip(PRECISIONS, (bundle, work), strict=True))
    found = {
        name: {backend: metrics(path, plain, splits.validation, backend) for backend in BACKENDS}
        for name, path in bundles.items()
    }
    result = {
        "device": this_machine(), "versions": dict(map(backend_version, BACKENDS)), "limit": limit,
        "target": report["target"], "weights": report["weights"], "samples": report["samples"],
        "quantise_s": quantised, "cost": report["cost"],
        "bytes": {name: sizes(path) for name, path in bundles.items()},
        "operators": {"int8": report["operators"]["int8"], "float": len(report["operators"]["float"])},
        "macs_int8": report["macs_int8"],
        "points": points(report["tasks"]),
        "kernels": kernels(work),
        "metrics": found,
        "worse_percent": {
            backend: {
                name: {
                    task: worse(
                        {"higher_is_better": plain.higher_is_better[task]}, before, found["int8"][backend][name][task]
                    )
                    for task, before in by_task.items()
                }
                for name, by_task in found["fp32"][backend].items()
            }
            for backend in BACKENDS
        },
        "cpu_ms": latencies(bundles, fetch(splits.calibration, range(1))["image"].numpy(), rounds),
        "load_1min": this_machine().get("load_1min"),
    }  # fmt: skip
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    click.echo(
        json.dumps({key: result[key] for key in ("bytes", "points", "worse_percent", "kernels", "cpu_ms")}, indent=1)
    )


if __name__ == "__main__":
    main()
