"""Measures OpenVINO's linear resize against two products, and a free batch against a fixed one.

    python -m benchmarks.runtime.openvino_resize --out benchmarks/results/openvino_resize.json

A 1×1 convolution of 16 channels and the resize of its result, as at the end of a dense task's decoder: both forms in
turns, one thread, CPU time, the 25th percentile of each with the median of the ratio. Then the job's network, fused,
with its batch free and fixed, in both forms of the resize. The relative costs decide
`mtlc.runtime.backends.openvino_graph.WORTH`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import openvino
from openvino import opset13

from mtlc.export.bundle.write_bundle import export_bundle
from mtlc.hw.measure.this_machine import this_machine
from mtlc.job.job import load_job
from mtlc.runtime.backends.openvino_graph import LANES, WORTH, resizes_to_products
from mtlc.workflows.export_job import samples_of
from mtlc.workflows.opened_job import open_job

MAPS = (
    (16, 4, (1, 13, 40)), (32, 2, (1, 3, 13, 40)), (32, 4, (1, 13)), (64, 2, (1, 3, 8, 13, 19)), (64, 4, (1, 13)),
    (128, 2, (1, 3, 6, 13)), (120, 4, (1, 3, 13)), (240, 2, (1, 3)),
)  # fmt: skip
OPTIONS = {
    "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1,
}  # fmt: skip


def head(channels: int, size: int, factor: int) -> openvino.Model:
    """(N, 16, size, size) → 1×1 convolution → (N, channels, factor·size, factor·size)."""
    weights = np.random.default_rng(0).standard_normal((channels, 16, 1, 1)).astype(np.float32)
    image = opset13.parameter([-1, 16, size, size], np.float32, name="x")
    made = opset13.convolution(opset13.relu(image), opset13.constant(weights), [1, 1], [0, 0], [0, 0], [1, 1])
    sizes, axes = (opset13.constant(np.array(values, np.int64)) for values in ([size * factor] * 2, [2, 3]))
    resized = opset13.interpolate(
        made, sizes, "linear_onnx", "sizes", axes=axes, coordinate_transformation_mode="half_pixel"
    )
    return openvino.Model([resized], [image])


def compiled(model: openvino.Model) -> Callable[[np.ndarray], object]:
    request = openvino.Core().compile_model(model, "CPU", OPTIONS).create_infer_request()
    return lambda x: request.infer({0: x}, share_inputs=True, share_outputs=True)


def in_turns(calls: Mapping[str, Callable[[np.ndarray], object]], x: np.ndarray, rounds: int) -> dict[str, Any]:
    """ms of CPU of each, p25, and how many times as fast as the first each is: median of the rounds, p10, p90."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 3):
        for name, call in calls.items():
            call(x)
            begun = time.process_time_ns()
            call(x)
            if turn >= 3:
                times[name].append((time.process_time_ns() - begun) / 1e6)
    first = np.asarray(times[next(iter(calls))])
    return {
        name: {
            "ms": float(np.percentile(taken, 25)),
            "faster": dict(
                zip(("p10", "median", "p90"), np.percentile(first / np.asarray(taken), (10, 50, 90)), strict=True)
            ),
        }
        for name, taken in times.items()
    }


def network(path: Path, batch: int, rounds: int, size: int) -> dict[str, Any]:
    """The bundle's one program: both forms of its resizes, its batch free and fixed."""
    calls = {}
    for resizes in ("resize", "products"):
        for shapes in ("free", "fixed"):
            model = openvino.Core().read_model(next(path.glob("*.onnx")))
            if resizes == "products":
                resizes_to_products(model)
            if shapes == "fixed":
                model.reshape([batch, 3, size, size])
            calls[f"{resizes}, {shapes} batch"] = compiled(model)
    x = np.random.default_rng(0).standard_normal((batch, 3, size, size)).astype(np.float32)
    return in_turns(calls, x, rounds)


@click.command()
@click.option("--job", default=Path("examples/scenes/prune.toml"), type=click.Path(path_type=Path), show_default=True)
@click.option("--rounds", default=60, show_default=True, type=click.IntRange(2))
@click.option(
    "--out", default=Path("benchmarks/results/openvino_resize.json"), type=click.Path(path_type=Path), show_default=True
)
def main(job: Path, rounds: int, out: Path) -> None:
    rows = []
    for size, factor, counts in MAPS:
        for channels in counts:
            batch = 1 if size * factor > 128 else 4
            resize, products = head(channels, size, factor), head(channels, size, factor)
            macs = channels * size * (1 + factor) / factor
            x = np.random.default_rng(0).standard_normal((batch, 16, size, size)).astype(np.float32)
            chosen = resizes_to_products(products, worth=float("inf")) and macs <= WORTH * ceil(channels / LANES)
            found = in_turns({"resize": compiled(resize), "products": compiled(products)}, x, rounds)
            rows.append(
                {
                    "size": size, "factor": factor, "channels": channels, "batch": batch,
                    "macs_per_pixel_and_block": macs / ceil(channels / LANES), "chosen": bool(chosen), **found,
                }
            )  # fmt: skip
            click.echo(f"{channels} × {size}² → {size * factor}²: {found['products']['faster']['median']:.2f} ×")
    opened = open_job(load_job(job))
    size = next(iter(opened.program.example.values())).shape[-1]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "fused"
        export_bundle(
            opened.program, path, samples=samples_of(opened), criteria=opened.criteria, fuse=True, tolerance=1e-2
        )
        networks = {f"batch {batch}": network(path, batch, rounds, size) for batch in (1, 8)}
    device = this_machine()
    result = {"kind": "measured", "device": device, "openvino": openvino.__version__, "threads": 1, "rounds": rounds}
    out.write_text(json.dumps({**result, "maps": rows, "network": networks}, indent=1) + "\n")


if __name__ == "__main__":
    main()
