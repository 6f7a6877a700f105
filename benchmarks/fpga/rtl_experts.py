"""Runs expert layers of a trained, extracted network through the engine's Verilog, with the routing of real images.

    python -m benchmarks.fpga.rtl_experts

M³ViT micro as it is shipped (both trainings), reduced to one task and to the experts that this task uses (1 % of the
tokens of 32 scenes or more), exported as ``mtlc export --format fpga`` does after the same scenes, and read again. What
the Verilog gives for one frame must be numpy's INT8 layer to the bit; how far that is from the float layer is said
beside it. Writes ``results/rtl_experts.json``. Needs Verilator.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mtlc.hw.rtl.export_experts import FLOOR_DB, export_experts, quantised_layers
from mtlc.hw.rtl.exported import read_exported, run_layer
from mtlc.job.job import load_job
from mtlc.moe.extraction import keep_experts
from mtlc.moe.layers import moe_layers, observing
from mtlc.program.program import Program
from mtlc.program.tensors_file import load_tensors
from mtlc.zoo.dense import to_tensors
from mtlc.zoo.scenes import render

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parents[1] / "results" / "rtl_experts.json"
TASKS = ("semseg", "depth", "normals")
ARRAY = (8, 8)
BYTES_PER_CYCLE = 8.0


def extracted(training: str, task: str, images: torch.Tensor) -> Program:
    """The shipped network with one task and the experts that it uses on `images`."""
    job = load_job(ROOT / "examples" / "scenes" / f"moe_{training}.toml")
    module = job.source.build().eval()
    load_tensors(module, ROOT / "examples" / "scenes" / "weights" / f"moe_{training}.safetensors")
    program = Program(module, job.tasks, {"image": images[:1]}, job.source).restricted([task])
    layers = moe_layers(program.module)
    with torch.no_grad(), observing(layers) as routed:
        program.outputs({"image": images})
    used = {layer.path: torch.nonzero(routed.usage(layer.path) >= 0.01).flatten().tolist() for layer in layers}
    keep_experts(program.module, {path: {"kept": kept} for path, kept in used.items()})
    return program


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    images = to_tensors({"image": render(33, 64, seed=1)["image"]})["image"]
    found: list[dict[str, Any]] = []
    for training in ("balance", "dependence"):
        for task in TASKS:
            program = extracted(training, task, images[:32])
            layers = quantised_layers(program, task, {"image": images[:32]}, {"image": images[32:]})
            with TemporaryDirectory() as folder:
                export_experts(Path(folder) / "experts", task, layers, ARRAY, FLOOR_DB, {})
                exported = read_exported(Path(folder) / "experts")
                for index, layer in enumerate(layers):
                    one = {"training": training, "task": task, "width": layer.frame.tokens.shape[1]}
                    one |= run_layer(exported, index, BYTES_PER_CYCLE).to_dict()
                    assert one["verilog"], f"{layer.path}: an output of the Verilog differs"
                    assert one["numpy"], f"{layer.path}: an output of numpy differs"
                    found.append(one)
                    print({key: value for key, value in one.items() if key != "queues"}, flush=True)
    RESULTS.write_text(
        json.dumps({"kind": "simulated", "array": "8x8", "bytes_per_cycle": BYTES_PER_CYCLE, "layers": found}, indent=1)
        + "\n"
    )


if __name__ == "__main__":
    main()
