"""Compares six counters of MACs on four networks with counts derived by hand, and times ours.

    pip install fvcore onnx-tool
    python -m benchmarks.hardware.mac_counts

A counter that is not installed is left out, and the result says so. Writes results/mac_counts.json.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import os
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mtlc.export.graph.expert_operators import expand, expert_nodes
from mtlc.export.graph.lower import lower
from mtlc.hw.cost.count import macs, onnx_workload, workload
from mtlc.program.program import ModelSource, Program
from mtlc.program.task_modules import TaskOutputs
from mtlc.tasks.task import TaskSpec
from mtlc.zoo.m3vit import m3vit
from mtlc.zoo.resnet import mtl_resnet

RESULTS = Path(__file__).parents[1] / "results" / "mac_counts.json"
TOOLS = {"fvcore": "fvcore", "onnx_tool": "onnx-tool"}


class Mlp(nn.Module):
    """64 tokens (N, 64, 192) through Linear(192, 1536), GELU, Linear(1536, 192)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(192, 1536), nn.Linear(1536, 192)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """ViT-Ti/16 at 224 × 224: 12 blocks of width 192, three heads, 1000 classes from the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 192, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, 192))
        self.position = nn.Parameter(torch.zeros(1, 197, 192))
        self.blocks = nn.Sequential(*(Block(192, 3) for _ in range(12)))
        self.norm, self.head = nn.LayerNorm(192), nn.Linear(192, 1000)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        x = self.blocks(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position)
        return self.head(self.norm(x)[:, 0])


def vit_truth() -> int:
    tokens, width = 197, 192
    block = tokens * (width * 3 * width + width * width + 2 * width * 4 * width) + 2 * tokens * tokens * width
    return 196 * 3 * 16 * 16 * width + 12 * block + width * 1000


def m3vit_truth(tasks: dict[str, int]) -> int:
    """M³ViT micro by hand: 64 × 64 images, patch 8, six blocks, 16 experts, top 4, a gate for each task."""
    width, grid, hidden, experts, top_k = 96, 8 * 8, 32, 16, 4
    tokens = grid + 1
    attention = tokens * 4 * width * width + 2 * tokens * tokens * width
    dense = tokens * 2 * width * 4 * width
    routed = tokens * (width * experts + top_k * 2 * width * width)
    # Until its first gate the backbone is every task's; the first mixture is in the second block, behind its attention.
    shared = grid * 3 * 8 * 8 * width + (attention + dense) + attention
    own = routed + 2 * (attention + dense + attention + routed)
    heads = sum(
        9 * hidden * (width * grid + hidden * 4 * grid + hidden * 16 * grid) + hidden * out * 16 * grid
        for out in tasks.values()
    )
    return shared + len(tasks) * own + heads


def program(module: nn.Module, *example: Tensor, tasks: tuple[str, ...] = ("",)) -> Program:
    specs = tuple(TaskSpec(task or "task", "l1", "rmse", output=task) for task in tasks)
    named = {f"input{index}": tensor for index, tensor in enumerate(example)}
    return Program(module.eval(), specs, named, ModelSource("benchmarks:none"))


def networks() -> dict[str, tuple[Program, int | None]]:
    """Each network with its MACs by hand, None where no short formula says them."""
    moe_tasks = {"depth": 1, "semseg": 6}
    torch.manual_seed(0)
    return {
        "mtl_resnet, 2 tasks, 128×128": (
            program(mtl_resnet(["depth", "edge"]), torch.randn(1, 3, 128, 128), tasks=("depth", "edge")), None,
        ),
        "MLP, 64 tokens, 192→1536→192": (program(Mlp(), torch.randn(1, 64, 192)), 64 * 2 * 192 * 1536),
        "ViT-Ti/16, 224×224": (program(ViT(), torch.randn(1, 3, 224, 224)), vit_truth()),
        "M³ViT micro, 2 tasks, 16 experts, top 4": (
            program(m3vit("micro", moe_tasks), torch.randn(1, 3, 64, 64), tasks=tuple(moe_tasks)),
            m3vit_truth(moe_tasks),
        ),
    }  # fmt: skip


def eager(made: Program) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        made.module(*made.example_inputs())
    return counter.get_total_flops() // 2


def decomposed(made: Program) -> int:
    inputs = made.example_inputs()
    with torch.no_grad():
        exported = torch.export.export(TaskOutputs(made).eval(), inputs).run_decompositions()
        with FlopCounterMode(display=False) as counter:
            exported.module()(*inputs)
    return counter.get_total_flops() // 2


def fvcore(made: Program) -> int:
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(TaskOutputs(made).eval(), made.example_inputs())
    return int(analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())


def exported(made: Program, form: str = "queue") -> onnx.ModelProto:
    model = lower(made, together=True).model
    expand(model, {layer.node.name: form for layer in expert_nodes(model.graph)})  # type: ignore[misc]
    return model


def onnx_tool(made: Program, model: onnx.ModelProto) -> int:
    """Of the file's own profile; its MACs count every elementwise operation as well."""
    import onnx_tool as tool

    inputs = {name: tensor.numpy() for name, tensor in made.example.items()}
    for value in model.graph.input:  # it takes a free dimension for a number that it does not have
        for dimension, size in zip(value.type.tensor_type.shape.dim, inputs[value.name].shape, strict=True):
            dimension.dim_value = size
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        graph = tool.Model(str(path)).graph
        graph.shape_infer(inputs)
        graph.profile()
    return int(sum(graph.macs)) if isinstance(graph.macs, list | tuple) else int(graph.macs)


def attempt(count: Callable[[], int]) -> dict[str, Any]:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return {"macs": count()}
    except Exception as error:  # what another tool cannot count is part of the finding
        return {
            "macs": None,
            "failed": f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}",
        }


def seconds(made: Program, rounds: int = 15) -> dict[str, Any]:
    """The time of `workload` on one thread, warm."""
    workload(made)
    wall, cpu = [], []
    for _ in range(rounds):
        began, used = time.perf_counter(), time.process_time()
        workload(made)
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
    return {
        "kind": "measured", "rounds": rounds, "load_1min": os.getloadavg()[0], "macs": macs(made),
        "operators": len(workload(made).operators),
        "wall_ms": {"median": 1e3 * statistics.median(wall), "best": 1e3 * min(wall), "worst": 1e3 * max(wall)},
        "cpu_ms": {"median": 1e3 * statistics.median(cpu), "best": 1e3 * min(cpu), "worst": 1e3 * max(cpu)},
    }  # fmt: skip


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    missing = [package for module, package in TOOLS.items() if importlib.util.find_spec(module) is None]
    found: dict[str, Any] = {
        "kind": "modelled",
        "left_out": {package: "not installed: pip install " + package for package in missing},
        "versions": {name: version(name) for name in ("torch", "onnx", *TOOLS.values()) if name not in missing},
        "networks": {},
    }
    for name, (made, truth) in networks().items():
        model = exported(made)
        counts: dict[str, Callable[[], int]] = {
            "mtlc program": lambda made=made: macs(made),
            "mtlc onnx": lambda model=model: onnx_workload(model).macs,
            "FlopCounterMode eager / 2": lambda made=made: eager(made),
            "FlopCounterMode decomposed / 2": lambda made=made: decomposed(made),
            "fvcore": lambda made=made: fvcore(made),
            "onnx-tool": lambda made=made, model=model: onnx_tool(made, model),
        }
        if expert_nodes(lower(made, together=True).model.graph):
            counts["mtlc onnx, experts masked"] = lambda made=made: onnx_workload(exported(made, "masked")).macs
        found["networks"][name] = {
            "by_hand": truth,
            "counts": {tool: attempt(count) for tool, count in counts.items() if tool not in missing},
        }
        print(json.dumps({name: found["networks"][name]}, ensure_ascii=False), flush=True)
    found["workload_time"] = {}
    for size in ((480, 640), (512, 512)):
        module = m3vit("small", image_size=size)
        made = program(module, torch.zeros(1, 3, *size), tasks=module.tasks)
        found["workload_time"][f"M³ViT small, 5 tasks, {size[0]}×{size[1]}"] = seconds(made)
    RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
