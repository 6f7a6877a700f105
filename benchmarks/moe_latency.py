"""What a task-sparse network costs on this machine, beside a dense one of the same active MACs.

    python benchmarks/moe_latency.py

M³ViT tiny at 128×256 (16 experts, top 4, expert width 192: the active MACs of the dense perceptron of ratio 4), one task,
and the same transformer with dense perceptrons; both random, since time does not depend on what was learnt but routing
does, so the routers are given a spread that uses all experts. Every form of the expert layer, both backends, batch 1 and
8, one thread, in turns. Writes ``results/moe_latency.json``.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

from mtlc.export import export_bundle
from mtlc.hw.devices import this_machine
from mtlc.hw.measure import summary
from mtlc.hw.workload import workload
from mtlc.moe.routing import Router
from mtlc.program import ModelSource, Program
from mtlc.runtime import Session
from mtlc.tasks import TaskSpec
from mtlc.zoo.m3vit import Mlp, m3vit

RESULTS = Path(__file__).parent / "results" / "moe_latency.json"
TASK = {"semseg": 7}
SIZE = (128, 256)
ROUNDS = 40


def program(dense: bool = False, experts: int = 16, seed: int = 0) -> Program:
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
    return Program(module, (TaskSpec("semseg", "mse", "mse"),), {"image": torch.zeros(2, 3, *SIZE)}, source)


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
    torch.set_num_threads(1)
    samples = torch.randn(8, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    results: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    with TemporaryDirectory() as folder:
        for experts in (16, 6, 4):
            moe, dense = program(experts=experts), program(dense=True)
            macs = {"moe": workload(moe).macs, "dense": workload(dense).macs}
            paths = {"dense": Path(folder) / f"dense-{experts}"}
            export_bundle(dense, paths["dense"], samples={"image": samples})
            for form in ("queue", "masked", "cached"):
                paths[form] = Path(folder) / f"{form}-{experts}"
                export_bundle(moe, paths[form], samples={"image": samples}, experts=form)
            for backend in ("onnxruntime", "openvino"):
                for batch in (1, 8):
                    key = f"{experts} experts, {backend}, batch {batch}"
                    results[key] = measure(paths, backend, batch, samples.numpy())
                    print(
                        key,
                        {name: (round(v["median_ms"], 2), round(v["ratio"], 3)) for name, v in results[key].items()},
                    )
    used = usage(program())
    RESULTS.write_text(
        json.dumps(
            {
                "device": this_machine(), "threads": 1, "rounds": ROUNDS, "macs": macs, "experts_used": used,
                "results": results,
            },
            indent=1,
        )
        + "\n"
    )  # fmt: skip


def usage(one: Program) -> list[int]:
    """Experts that each layer of the measured network uses on random inputs: the measurement must not be of idle experts."""
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
