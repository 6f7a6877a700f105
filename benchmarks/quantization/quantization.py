"""Compares INT8 with FP32 by latency, size and every task's metric, in onnxruntime and OpenVINO.

    python -m benchmarks.pruning.pruners --subject scenes --method pagcp --cut 60% --seed 0 --recipe new \\
        --save runs/pruned
    python -m benchmarks.pruning.pruners --subject scenes --method pagcp --cut 60% --seed 0 --recipe new \\
        --round-to 16 --save runs/pruned16
    python -m benchmarks.quantization.quantization --program pruned=runs/pruned/pagcp-0-0.4 \\
        --program pruned16=runs/pruned16/pagcp-0-0.4
    python -m benchmarks.quantization.quantization --job examples/scenes/moe_balance.toml --experts masked \\
        --out benchmarks/results/quantization_m3vit.json
    python -m benchmarks.quantization.quantization --tiny --experts masked \\
        --out benchmarks/results/quantization_m3vit_tiny.json

The network of the job and each program folder (`Program.save`) is exported, task by task and fused, and both bundles
are quantised for this machine with a limit for every task against its own FP32 bundle. All bundles of a setting run in
turns, one thread; in OpenVINO also in sessions that are told their batch. Metrics are those of the first form on the
whole validation split, in each backend, and how much worse each is than the job's network in FP32. With `--tiny` the
network is M³ViT tiny (128×256, three tasks) with random weights and smooth random pictures, at batch 1: latency, size
and operators are those of the architecture; metrics would mean nothing, and there are none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
import openvino
import torch
from torch.nn import functional

from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.evaluation.splits import Splits, fetch
from mtlc.export.bundle.write_bundle import export_bundle
from mtlc.export.quantization import quantize_bundle
from mtlc.hw.measure.in_turns import Setting, backend_version, measure_settings
from mtlc.hw.measure.this_machine import this_machine
from mtlc.job.job import load_job
from mtlc.program.program import ModelSource, Program
from mtlc.runtime import Session
from mtlc.tasks.task import Limit, TaskSpec
from mtlc.workflows.opened_job import open_job
from mtlc.zoo.m3vit import SIZES

BACKENDS = ("onnxruntime", "openvino")
SETTINGS = (("onnxruntime", False), ("openvino", False), ("openvino", True))
FIRST = "dense"
FORMS = ("task by task", "fused")


def timings(bundles: dict[str, Path], images: np.ndarray, rounds: int, backend: str, fixed: bool) -> dict[str, Any]:
    """ms of one call of each bundle, in turns, with the batch `fixed` or free. `speedup` is by the clock, the median
    over the rounds with p10 and p90, `cpu_speedup` by time of the processor, which other processes disturb less: both
    against the first bundle.
    """
    batch = len(images) if fixed else None
    settings = {name: Setting(path, backend, batch=batch) for name, path in bundles.items()}
    found = measure_settings(settings, images, rounds=rounds)
    rows = found["bundles"]
    ratios = found["speedup"]
    return {
        name: {**row, "speedup": ratios.get(name), "cpu_speedup": ratios[name]["cpu"] if name in ratios else 1.0}
        for name, row in rows.items()
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
                if kind in ("Conv", "MatMul", "Gemm", "QGemm", "ConvTranspose", "MatMulIntegerToFloat"):
                    whole = node.op_type.startswith("Q") or "Integer" in node.op_type
                    found["onnxruntime"]["int8" if whole else "float"] += 1
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


def quality(bundles: Mapping[str, Path], criteria: Criteria, split: Any) -> dict[str, Any]:
    """Every task's metric of each bundle in each backend, and how much worse that is than the first bundle's."""
    found = {
        label: {backend: metrics(path, criteria, split, backend) for backend in BACKENDS}
        for label, path in bundles.items()
    }
    base, better = found[f"{FIRST} fp32"]["onnxruntime"], criteria.higher_is_better
    worse = {
        label: {
            backend: {
                task: 100 * (value / base[task] - 1) * (-1 if better[task] else 1) for task, value in values.items()
            }
            for backend, values in by_backend.items()
        }
        for label, by_backend in found.items()
    }
    return {"metrics": found, "worse_percent": worse}


class Pictures:
    """Random pictures at an eighth of the resolution, made larger, with labels of zeros."""

    def __init__(self, count: int, size: tuple[int, int], channels: Mapping[str, int]) -> None:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(count, 3, size[0] // 8, size[1] // 8, generator=generator)
        self._images = functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
        self._labels = {name: torch.zeros(width, *size) for name, width in channels.items()}

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"image": self._images[index], **self._labels}


def tiny_network() -> tuple[Program, Splits]:
    """M³ViT tiny with random weights, and data of its size."""
    size, channels = SIZES["tiny"]["image_size"], {"semseg": 19, "depth": 1, "normals": 3}
    torch.manual_seed(0)
    source = ModelSource("mtlc.zoo:m3vit", {"size": "tiny", "tasks": channels})
    tasks = tuple(TaskSpec(name, "mse", "mse") for name in channels)
    pictures = Pictures(16, size, channels)
    program = Program(source.build().eval(), tasks, {"image": torch.zeros(2, 3, *size)}, source)
    return program, Splits(pictures, pictures, pictures)


@click.command()
@click.option("--program", "folders", multiple=True, metavar="NAME=FOLDER", help="A pruned network.")
@click.option("--job", default=Path("examples/scenes/prune.toml"), type=click.Path(path_type=Path), show_default=True)
@click.option("--limit", default="1%", show_default=True, help="What every task may lose to INT8.")
@click.option("--rounds", default=100, show_default=True, type=click.IntRange(2))
@click.option(
    "--out", default=Path("benchmarks/results/quantization.json"), type=click.Path(path_type=Path), show_default=True
)
@click.option("--form", "forms", multiple=True, type=click.Choice(FORMS), help="May be given again. Default: both.")
@click.option("--experts", default="auto", show_default=True, help="The form of experts in [export].")
@click.option("--tiny", is_flag=True, help="M³ViT tiny with random weights: latency and size.")
@click.option("--work", type=click.Path(path_type=Path), help="Where bundles are made, and found by the next call.")
def main(
    folders: tuple[str, ...],
    job: Path,
    limit: str,
    rounds: int,
    out: Path,
    forms: tuple[str, ...],
    experts: str,
    tiny: bool,
    work: Path | None,
) -> None:
    torch.set_num_threads(1)
    if tiny:
        network, splits = tiny_network()
        criteria, limit_of, source = Criteria(network.tasks), None, network.source
    else:
        opened = open_job(load_job(job))
        network, splits, criteria = opened.program, opened.splits, opened.criteria
        limit_of, source = Limit.parse(limit), opened.job.source
    names = [task.name for task in criteria.tasks]
    programs = {FIRST: network}
    for text in folders:
        name, _, folder = text.partition("=")
        programs[name] = Program.load(Path(folder), source)
    limited = Criteria(replace(task, max_drop=limit_of) for task in criteria.tasks)
    images = fetch(splits.calibration, range(8))["image"].numpy()
    result: dict[str, Any] = {
        "device": this_machine(), "job": "M³ViT tiny, random weights" if tiny else job.name,
        "limit": None if tiny else limit, "rounds": rounds, "threads": 1, "tasks": names,
        "versions": dict(map(backend_version, BACKENDS)),
    }  # fmt: skip
    with TemporaryDirectory() as temporary:
        scratch = work or Path(temporary)
        bundles: dict[str, dict[str, Path]] = {form: {} for form in forms or FORMS}
        result["networks"] = {}
        for name, program in programs.items():
            for form in bundles:
                plain, int8 = (scratch / f"{form}-{name}-{precision}" for precision in ("fp32", "int8"))
                bundles[form] |= {f"{name} fp32": plain, f"{name} int8": int8}
                kept = scratch / f"{form}-{name}.json"
                if not kept.exists():
                    click.echo(f"{name}, {form}")
                    export_bundle(
                        program, plain, samples={"image": torch.from_numpy(images)}, criteria=criteria,
                        fuse=form == "fused",
                        tolerance=1e-2, experts=experts,
                    )  # fmt: skip
                    report = quantize_bundle(
                        plain, int8, criteria=limited, calibration=splits.calibration, validation=splits.validation,
                        log=lambda line: click.echo(f"  {line}"),
                    )  # fmt: skip
                    report.pop("path")
                    if tiny:
                        report.pop("tasks")
                    kept.write_text(json.dumps({**report, "kernels": kernels(int8)}))
                result["networks"][f"{name}, {form}"] = json.loads(kept.read_text())
        if not tiny:
            result |= quality(next(iter(bundles.values())), criteria, splits.validation)
        result["bytes"] = {
            form: {label: sum(file.stat().st_size for file in path.iterdir()) for label, path in paths.items()}
            for form, paths in bundles.items()
        }
        result["latency_ms"] = {
            form: {
                f"{backend}, {'fixed ' * fixed}batch {batch}": timings(
                    paths, np.ascontiguousarray(images[:batch]), rounds, backend, fixed
                )
                for backend, fixed in SETTINGS
                for batch in ((1,) if tiny else (1, 8))
            }
            for form, paths in bundles.items()
        }
    result["load_1min"] = this_machine().get("load_1min")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    for form, settings in result["latency_ms"].items():
        for setting, rows in settings.items():
            for name, row in rows.items():
                click.echo(
                    f"{form} | {setting} | {name}: {row['median_ms']:.2f} ms, {row['cpu_median_ms']:.2f} of CPU, "
                    f"{row['cpu_speedup']:.2f} ×"
                )


if __name__ == "__main__":
    main()
