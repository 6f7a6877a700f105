"""Measures a mixture of experts on this machine beside a dense network of the same active MACs.

    python -m benchmarks.experts.moe_latency

M³ViT tiny at 128×256 (16 experts, top 4, expert width 192: the active MACs of the dense perceptron of ratio 4), one
task, and the same transformer with dense perceptrons; both random, since time does not depend on what was learnt but
routing does, so the routers are given a spread that uses all experts. Every form of the expert layer, both backends,
batch 1 and 8, one thread, in turns. The encoder alone, where the experts are, and the whole network with the paper's
head, which has six of its seven GMACs. Writes ``results/moe_latency.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

from mtlc.export import export_bundle
from mtlc.hw.cost.count import workload
from mtlc.hw.measure.in_turns import summary
from mtlc.hw.measure.this_machine import this_machine
from mtlc.moe.routing import Router
from mtlc.program.program import ModelSource, Program
from mtlc.runtime import Session
from mtlc.tasks.task import TaskSpec
from mtlc.zoo.m3vit import M3ViT, Mlp, m3vit

RESULTS = Path(__file__).parents[1] / "results" / "moe_latency.json"
TASK = {"semseg": 7}
SIZE = (128, 256)
ROUNDS = 60


class Encoder(nn.Module):
    """The tokens of the one task, (N, 129, 192)."""

    def __init__(self, network: M3ViT) -> None:
        super().__init__()
        self.backbone = network.backbone

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"semseg": self.backbone(image, None, torch.zeros(1, dtype=torch.long))}


def program(dense: bool = False, experts: int = 16, seed: int = 0, whole: bool = False) -> Program:
    """The network with one task; `dense` replaces every expert layer by a perceptron of the same active MACs."""
    torch.manual_seed(seed)
    module = m3vit("tiny", tasks=TASK, image_size=SIZE, experts=experts).eval()
    for block in module.backbone.blocks:
        if hasattr(block.mlp, "router"):
            if dense:
                block.mlp = Mlp(192, 768)
            else:
                spread(block.mlp.router)
    source = ModelSource("mtlc.zoo:m3vit", {})
    return Program(
        module if whole else Encoder(module),
        (TaskSpec("semseg", "mse", "mse"),),
        {"image": torch.zeros(2, 3, *SIZE)},
        source,
    )


def spread(router: Router) -> None:
    """Weights under which tokens choose different experts."""
    with torch.no_grad():
        nn.init.normal_(router.weight, std=0.3)


def measure(paths: dict[str, Path], backend: str, batch: int, samples: np.ndarray) -> dict[str, dict[str, float]]:
    """Milliseconds of each bundle, in turns, and the ratio to the dense network within each round."""
    sessions = {name: Session(path, backend=backend, threads=1) for name, path in paths.items()}
    x = samples[:batch]
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(ROUNDS + 5):
        for name, session in sessions.items():
            session.run(x)
            started = time.perf_counter()
            session.run(x)
            if turn >= 5:
                times[name].append((time.perf_counter() - started) * 1e3)
    for session in sessions.values():
        session.close()
    found = {}
    for name, values in times.items():
        ratios = np.asarray(values) / np.asarray(times["dense"])
        p10, median, p90 = (float(v) for v in np.percentile(ratios, (10, 50, 90)))
        found[name] = {**summary(values), "ratio": median, "ratio_p10": p10, "ratio_p90": p90}
    return found


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    samples = torch.randn(8, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    found: dict[str, object] = {
        "device": this_machine(),
        "threads": 1,
        "rounds": ROUNDS,
        "experts_used": usage(program()),
    }
    macs: dict[str, int] = {}
    results: dict[str, dict[str, dict[str, float]]] = {}
    with TemporaryDirectory() as folder:
        for experts, whole in ((16, False), (16, True), (8, False), (6, False), (4, False)):
            part = "whole network" if whole else "encoder"
            moe, dense = program(experts=experts, whole=whole), program(dense=True, whole=whole)
            macs |= {f"moe, {part}": workload(moe).macs, f"dense, {part}": workload(dense).macs}
            paths = {"dense": Path(folder) / f"dense-{experts}-{whole}"}
            # What is timed is not shipped: rounding may route a token of a random network otherwise.
            export_bundle(dense, paths["dense"], samples={"image": samples}, tolerance=0.5)
            for form in ("queue", "masked", "cached"):
                paths[form] = Path(folder) / f"{form}-{experts}-{whole}"
                export_bundle(moe, paths[form], samples={"image": samples}, experts=form, tolerance=0.5)
            for backend in ("onnxruntime", "openvino"):
                # Experts outside the graph are for onnxruntime: OpenVINO copies the weights that it is fed.
                chosen = {name: path for name, path in paths.items() if backend == "onnxruntime" or name != "cached"}
                for batch in (1, 8) if experts == 16 and not whole else (1,):
                    key = f"{part}, {experts} experts, {backend}, batch {batch}"
                    results[key] = measure(chosen, backend, batch, samples.numpy())
                    print(
                        key,
                        {n: (round(v["median_ms"], 2), round(v["ratio"], 3)) for n, v in results[key].items()},
                        flush=True,
                    )
    RESULTS.write_text(json.dumps({**found, "macs": macs, "results": results}, indent=1) + "\n")


def usage(one: Program) -> list[int]:
    """Experts that each layer of the measured network uses on random inputs: none must be idle."""
    counts: list[Counter[int]] = []
    hooks = [
        router.register_forward_hook(lambda _m, _i, out: counts.append(Counter(out[1].flatten().tolist())))
        for router in one.module.modules()
        if isinstance(router, Router)
    ]
    with torch.inference_mode():
        one.module(torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0)))
    for hook in hooks:
        hook.remove()
    return [len(count) for count in counts]


if __name__ == "__main__":
    main()
