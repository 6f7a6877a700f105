"""Measures what INT8 experts cost a task of the shipped networks, and what one frame takes on each accelerator.

    python -m benchmarks.fpga.exported_experts

M³ViT micro as it is shipped (both trainings) with task depth alone: whole after load balancing, extracted after task
dependence. Scales are of 32 calibration samples; the metric is of the whole validation split, with the experts in float
and as the engine computes them. The extracted network's frames are simulated with the routing of four calibration
samples; a dense frame has no routing. Writes ``results/exported_experts.json``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.experts.extraction import extract, opened
from mtlc.errors import UserError
from mtlc.evaluation.evaluate import evaluate
from mtlc.evaluation.splits import fetch
from mtlc.files import write_json
from mtlc.hw.fpga.accelerator import accelerator
from mtlc.hw.fpga.event_simulation import simulate
from mtlc.hw.routing.moe_vit_shape import from_program
from mtlc.hw.routing.routing_trace import record
from mtlc.hw.rtl.expert_calls import in_int8
from mtlc.hw.rtl.export_experts import quantised_layers
from mtlc.program.program import Program
from mtlc.workflows.opened_job import Opened

RESULTS = Path(__file__).parents[1] / "results" / "exported_experts.json"
TASK = "depth"
ACCELERATORS = ("m3vit-zcu104", "edge-moe-zcu102", "mtlc-engine-zcu104")
POLICIES = ("dense", "cache", "resident", "reordered")
FRAMES = 4


def in_both(one: Opened, program: Program) -> dict[str, Any]:
    """The task's metric with the experts in float and in INT8, and each layer's signal above its quantisation noise."""
    criteria, validation = one.criteria.restricted((TASK,)), one.splits.validation
    calibration, frame = fetch(one.splits.calibration, range(32)), fetch(validation, [0])
    layers = quantised_layers(program, TASK, {"image": calibration["image"]}, {"image": frame["image"]})
    before = evaluate(program, criteria, validation).metrics[TASK]
    with in_int8(program, {layer.path: layer.experts for layer in layers}):
        after = evaluate(program, criteria, validation).metrics[TASK]
    return {
        "experts": [len(layer.experts.first) for layer in layers],
        "signal_to_quantisation_noise_db": [layer.snr_db for layer in layers],
        "float": before,
        "int8": after,
    }


def frames(one: Opened, program: Program) -> dict[str, dict[str, float | None]]:
    """Milliseconds of a frame by accelerator and policy, the mean of four; None where it has no such policy."""
    network = from_program(program)
    images = fetch(one.splits.calibration, range(FRAMES))["image"]
    sequence = record(program, list(images)).sequence([TASK] * FRAMES)
    found: dict[str, dict[str, float | None]] = {}
    for name in ACCELERATORS:
        found[name] = {}
        for policy in POLICIES:
            count = 1 if policy == "dense" else FRAMES
            try:
                found[name][policy] = simulate(network, accelerator(name), policy, sequence[:count]).ms / count  # type: ignore[arg-type]
            except UserError:
                found[name][policy] = None
    return found


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    balance, dependence = (opened(training, 0, Path("data/moe")) for training in ("balance", "dependence"))
    with TemporaryDirectory() as folder:
        extracted = extract(dependence, Path(folder), tasks=(TASK,)).program
    result = {
        "kind": {"int8": "measured", "frame_ms": "simulated"},
        "task": TASK,
        "int8": {
            "balance": in_both(balance, balance.program.restricted([TASK])),
            "dependence, extracted": in_both(dependence, extracted),
        },
        "frame_ms": frames(dependence, extracted),
    }
    write_json(RESULTS, result)


if __name__ == "__main__":
    main()
