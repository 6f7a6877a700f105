"""Expert layers of a trained, extracted network through the engine's Verilog, with the routing of real images.

    python benchmarks/rtl_experts.py

M³ViT micro as it is shipped (both trainings), reduced to one task and to the experts that this task uses (1 % of the
tokens of 32 scenes or more). Both matrices of every expert go to INT8: weights by output, activations by tensor, after
the same scenes; GELU becomes a table between the two. For one frame the queues are the router's own. What the Verilog
gives must be numpy's INT8 layer to the bit; how far that is from the float layer is said beside it. Writes
``results/rtl_experts.json``. Needs Verilator.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from mtlc.hw.rtl.cycles import cycles
from mtlc.hw.rtl.engine import Engine
from mtlc.hw.rtl.reference import QuantisedLinear, expert_layer, fixed_point
from mtlc.hw.rtl.simulator import simulate
from mtlc.moe.extraction import keep_experts
from mtlc.moe.layers import MoeLayer, moe_layers, observing
from mtlc.program import load_tensors
from mtlc.zoo.dense import to_tensors
from mtlc.zoo.m3vit import m3vit
from mtlc.zoo.scenes import render

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "rtl_experts.json"
TASKS = ("semseg", "depth", "normals")
ENGINE = Engine(8, 8)
BYTES_PER_CYCLE = 8.0


def extracted(training: str, task: str, images: torch.Tensor) -> torch.nn.Module:
    module = m3vit("micro", tasks=list(TASKS)).eval()
    load_tensors(module, ROOT / "examples" / "scenes" / "weights" / f"moe_{training}.safetensors")
    module.keep_tasks([task])
    layers = moe_layers(module)
    with torch.no_grad(), observing(layers) as routed:
        module(images)
    used = {layer.path: torch.nonzero(routed.usage(layer.path) >= 0.01).flatten().tolist() for layer in layers}
    keep_experts(module, {path: {"kept": kept} for path, kept in used.items()})
    return module


def calls(module: torch.nn.Module, images: torch.Tensor) -> dict[str, list[NDArray[Any]]]:
    """For each mixture the tokens (N, D), the rows of the experts (N, K) that they go to (−1: none) and the scores (N, K)."""
    found: dict[str, list[NDArray[Any]]] = {}
    layers = {layer.experts: layer for layer in moe_layers(module)}

    def hook(experts: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        x, index, score = (one.flatten(0, -2).numpy() for one in args)
        layer = layers[experts]
        rows = np.where(index >= 0, layer.position.numpy()[index], -1)
        found[layer.path] = [x, rows, score]

    handles = [experts.register_forward_pre_hook(hook) for experts in layers]
    with torch.no_grad():
        module(images)
    for handle in handles:
        handle.remove()
    return found


def quantised(weight: NDArray[Any], bias: NDArray[Any], into: float, out: float) -> QuantisedLinear:
    """A layer with INT8 weights by output; `into` and `out` are the scales of what comes in and what goes out."""
    scale = np.maximum(np.abs(weight).max(1), 1e-8).astype(np.float64) / 127
    multiplier, shift = fixed_point(scale * into / out)
    return QuantisedLinear(
        np.rint(weight / scale[:, None]).astype(np.int8),
        np.rint(bias / (scale * into)).astype(np.int32),
        multiplier,
        shift,
    )


def queue_of(expert: int, rows: NDArray[Any]) -> NDArray[np.intp]:
    return np.nonzero((rows == expert).any(1))[0]


def scale(parts: list[NDArray[Any]]) -> float:
    """The INT8 scale that holds all values."""
    return max(float(np.abs(part).max()) for part in parts if part.size) / 127


def run_layer(layer: MoeLayer, known: list[NDArray[Any]], frame: list[NDArray[Any]]) -> dict[str, Any]:
    """One mixture of one frame. Raises `AssertionError` if the Verilog's outputs are not numpy's."""
    w1, b1, w2, b2 = (
        part.detach().numpy() for fc in (layer.inner.fc1, layer.inner.fc2) for part in (fc.weight, fc.bias)
    )
    # Scales by tensor, after the calibration scenes' tokens in the queues that they really go to.
    x, rows, _ = known
    before = [x[queue_of(e, rows)] @ w1[e].T + b1[e] for e in range(len(w1))]
    after = [F.gelu(torch.from_numpy(one)).numpy() @ w2[e].T + b2[e] for e, one in enumerate(before)]
    s_x, s_h, s_y = scale([x]), scale(before), scale(after)
    values = F.gelu(torch.arange(-128, 128, dtype=torch.float64) * s_h).numpy()
    s_g = float(values.max()) / 127
    table = np.clip(np.rint(values / s_g), -128, 127).astype(np.int8)
    first = [quantised(w1[e], b1[e], s_x, s_h) for e in range(len(w1))]
    second = [quantised(w2[e], b2[e], s_g, s_y) for e in range(len(w1))]

    x, rows, score = frame
    queues = [queue_of(e, rows) for e in range(len(w1))]
    q = np.clip(np.rint(x / s_x), -128, 127).astype(np.int8)
    one = simulate(ENGINE, q, queues, first, bytes_per_cycle=BYTES_PER_CYCLE)
    hidden = table[np.concatenate(one.outputs).astype(np.int64) + 128]
    ends = np.cumsum([0, *map(len, queues)]).tolist()
    places = [np.arange(a, b) for a, b in pairwise(ends)]
    two = simulate(ENGINE, hidden, places, second, bytes_per_cycle=BYTES_PER_CYCLE)
    right = expert_layer(q, queues, first, second, table)
    assert all(np.array_equal(a, b) for a, b in zip(two.outputs, right, strict=True)), "an output differs from numpy's"

    made, exact = np.zeros_like(x), np.zeros_like(x)
    for e, tokens in enumerate(queues):
        weight = np.where(rows[tokens] == e, score[tokens], 0).sum(1, keepdims=True)
        made[tokens] += weight * two.outputs[e] * s_y
        floats = F.gelu(torch.from_numpy(x[tokens] @ w1[e].T + b1[e])).numpy() @ w2[e].T + b2[e]
        exact[tokens] += weight * floats
    lengths, widths = [len(one) for one in queues], ([w1.shape[1]] * len(w1), [w2.shape[1]] * len(w2))
    forms = [cycles(ENGINE, x.shape[1], widths[0], lengths, BYTES_PER_CYCLE),
             cycles(ENGINE, w2.shape[2], widths[1], lengths, BYTES_PER_CYCLE)]  # fmt: skip
    macs = sum(lengths) * (w1[0].size + w2[0].size)
    simulated = one.cycles + two.cycles
    return {
        "experts": len(w1), "queues": lengths, "width": x.shape[1], "hidden": w1.shape[1], "identical": True,
        "outputs_compared": sum(part.size for part in right), "cycles": simulated, "closed_form": sum(forms),
        "waited_for_weights": one.waited_for_weights + two.waited_for_weights,
        "utilisation": macs / (ENGINE.rows * ENGINE.columns * simulated),
        "signal_to_quantisation_noise_db": float(10 * np.log10((exact**2).sum() / ((made - exact) ** 2).sum())),
    }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    images = to_tensors({"image": render(33, 64, seed=1)["image"]})["image"]
    found = []
    for training in ("balance", "dependence"):
        for task in TASKS:
            module = extracted(training, task, images[:32])
            known, frame = calls(module, images[:32]), calls(module, images[32:])
            for layer in moe_layers(module):
                one = {"training": training, "task": task, "layer": layer.path}
                one |= run_layer(layer, known[layer.path], frame[layer.path])
                found.append(one)
                print({key: value for key, value in one.items() if key != "queues"})
    RESULTS.write_text(
        json.dumps({"kind": "simulated", "array": "8x8", "bytes_per_cycle": BYTES_PER_CYCLE, "layers": found}, indent=1)
        + "\n"
    )


if __name__ == "__main__":
    main()
