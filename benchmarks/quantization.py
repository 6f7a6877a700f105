"""INT8 against FP32: latency, size and every task's metric, in onnxruntime and OpenVINO.

    python benchmarks/quantization.py --program pruned=runs/pagcp-0/0.4 --out benchmarks/results/quantization.json

The network of the job and each program folder (`Program.save`) is exported, task by task and fused, and both bundles are
quantised for this machine with a limit for every task against its own FP32 bundle. All bundles of a setting run in turns, one
thread. Metrics are those of the task-by-task bundles on the whole validation split, in each backend.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
import openvino
import torch

from mtlc.compile.run import samples_of
from mtlc.compile.workspace import open_job
from mtlc.data import fetch
from mtlc.evaluation import Criteria, evaluate
from mtlc.export.bundle import export_bundle
from mtlc.export.quantization import quantize_bundle
from mtlc.hw.devices import this_machine
from mtlc.hw.measure import summary
from mtlc.job import load_job
from mtlc.program import Program
from mtlc.runtime import Session
from mtlc.tasks import Limit

BACKENDS = ("onnxruntime", "openvino")
FIRST = "dense"


def timings(bundles: dict[str, Path], images: np.ndarray, rounds: int, backend: str) -> dict[str, Any]:
    """ms of one call of each bundle, in turns: an untimed call, then a timed one. `speedup` is by time of the processor,
    which other processes disturb less, and `wall_speedup` by the clock: medians over the turns.
    """
    sessions = {name: Session(path, backend=backend, threads=1) for name, path in bundles.items()}
    wall: dict[str, list[float]] = {name: [] for name in bundles}
    cpu: dict[str, list[float]] = {name: [] for name in bundles}
    for turn in range(rounds + 3):
        for name, session in sessions.items():
            session.run(images)
            busy, start = time.process_time_ns(), time.perf_counter_ns()
            session.run(images)
            if turn >= 3:
                wall[name].append((time.perf_counter_ns() - start) / 1e6)
                cpu[name].append((time.process_time_ns() - busy) / 1e6)
    for session in sessions.values():
        session.close()
    first = f"{FIRST} fp32"
    return {
        name: {
            **summary(wall[name]),
            "cpu_median_ms": float(np.median(cpu[name])),
            "speedup": float(np.median(np.array(cpu[first]) / np.array(cpu[name]))),
            "wall_speedup": float(np.median(np.array(wall[first]) / np.array(wall[name]))),
        }
        for name in bundles
    }


def metrics(bundle: Path, criteria: Criteria, split: Any, backend: str) -> dict[str, float]:
    """Every task's metric on the split."""
    with Session(bundle, backend=backend, threads=1) as session:
        run = lambda batch: {n: torch.from_numpy(a) for n, a in session.run(batch["image"].numpy()).items()}  # noqa: E731
        return evaluate(run, criteria, split).metrics


def kernels(bundle: Path) -> dict[str, dict[str, int]]:
    """How many convolutions and products each backend really runs in INT8, and how many not."""
    found = {backend: {"int8": 0, "float": 0} for backend in BACKENDS}
    with TemporaryDirectory() as scratch:
        for file in sorted(bundle.glob("*.onnx")):
            options = onnxruntime.SessionOptions()
            options.log_severity_level, options.optimized_model_filepath = 3, f"{scratch}/{file.name}"
            onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            for node in onnx.load(options.optimized_model_filepath, load_external_data=False).graph.node:
                kind = node.op_type.removeprefix("Fused").removeprefix("QLinear")
                if kind in ("Conv", "MatMul", "Gemm", "QGemm", "ConvTranspose"):
                    found["onnxruntime"]["int8" if node.op_type.startswith("Q") else "float"] += 1
            compiled = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            for operation in compiled.get_runtime_model().get_ops():
                info = {
                    key: str(value.astype(str))
                    for key, value in operation.get_rt_info().items()
                    if hasattr(value, "astype")
                }
                if info.get("layerType") in ("Convolution", "FullyConnected", "MatMul"):
                    found["openvino"]["int8" if info.get("runtimePrecision") in ("i8", "u8") else "float"] += 1
    return found


@click.command()
@click.option("--program", "folders", multiple=True, metavar="NAME=FOLDER", help="A pruned network.")
@click.option("--job", default=Path("examples/scenes/prune.toml"), type=click.Path(path_type=Path), show_default=True)
@click.option("--limit", default="1%", show_default=True, help="What every task may lose to INT8.")
@click.option("--rounds", default=100, show_default=True, type=click.IntRange(2))
@click.option(
    "--out", default=Path("benchmarks/results/quantization.json"), type=click.Path(path_type=Path), show_default=True
)
@click.option("--work", type=click.Path(path_type=Path), help="Where bundles are made, and found by the next call.")
def main(folders: tuple[str, ...], job: Path, limit: str, rounds: int, out: Path, work: Path | None) -> None:
    torch.set_num_threads(1)
    opened = open_job(load_job(job))
    splits, names = opened.splits, [task.name for task in opened.criteria.tasks]
    programs = {FIRST: opened.program}
    for text in folders:
        name, _, folder = text.partition("=")
        programs[name] = Program.load(Path(folder), opened.job.source)
    limited = Criteria(type(task)(**{**vars(task), "max_drop": Limit.parse(limit)}) for task in opened.criteria.tasks)
    images = fetch(splits.calibration, range(8))["image"].numpy()
    result: dict[str, Any] = {
        "device": this_machine(), "job": job.name, "limit": limit, "rounds": rounds, "threads": 1, "tasks": names,
    }  # fmt: skip
    with TemporaryDirectory() as temporary:
        scratch = work or Path(temporary)
        bundles: dict[str, dict[str, Path]] = {"task by task": {}, "fused": {}}
        result["networks"] = {}
        for name, program in programs.items():
            for form in bundles:
                plain, int8 = (scratch / f"{form}-{name}-{precision}" for precision in ("fp32", "int8"))
                bundles[form] |= {f"{name} fp32": plain, f"{name} int8": int8}
                kept = scratch / f"{form}-{name}.json"
                if not kept.exists():
                    click.echo(f"{name}, {form}")
                    export_bundle(
                        program, plain, samples=samples_of(opened), criteria=opened.criteria, fuse=form == "fused",
                        tolerance=1e-2,
                    )  # fmt: skip
                    report = quantize_bundle(
                        plain, int8, criteria=limited, calibration=splits.calibration, validation=splits.validation,
                        log=lambda line: click.echo(f"  {line}"),
                    )  # fmt: skip
                    report.pop("path")
                    kept.write_text(json.dumps({**report, "kernels": kernels(int8)}))
                result["networks"][f"{name}, {form}"] = json.loads(kept.read_text())
        result["metrics"] = {
            label: {backend: metrics(path, opened.criteria, splits.validation, backend) for backend in BACKENDS}
            for label, path in bundles["task by task"].items()
        }
        result["latency_ms"] = {
            form: {
                f"{backend}, batch {batch}": timings(paths, np.ascontiguousarray(images[:batch]), rounds, backend)
                for backend in BACKENDS
                for batch in (1, 8)
            }
            for form, paths in bundles.items()
        }
    result["load_1min"] = this_machine().get("load_1min")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    for form, settings in result["latency_ms"].items():
        for setting, rows in settings.items():
            for name, row in rows.items():
                click.echo(f"{form} | {setting} | {name}: {row['cpu_median_ms']:.2f} ms of CPU, {row['speedup']:.2f} ×")


if __name__ == "__main__":
    main()
