"""A small M³ViT with some of its experts gone, as `mtlc.hw.rtl` exports it."""

from __future__ import annotations

import torch

from mtlc.hw.rtl.export_experts import quantised_layers
from mtlc.hw.rtl.layout import ExportedLayer
from mtlc.moe.extraction import keep_experts
from mtlc.moe.layers import moe_layers, observing
from mtlc.program.program import ModelSource, Program
from mtlc.program.tensors_file import load_tensors
from mtlc.tasks.task import TaskSpec
from mtlc.zoo.m3vit import m3vit
from testkit.places import EXAMPLES
from testkit.visible_experts import visible

KEPT = [0, 2, 5]
PATHS = ("backbone.blocks.1.mlp", "backbone.blocks.3.mlp", "backbone.blocks.5.mlp")


def network(extracted: bool = True) -> Program:
    """Random weights, six experts for one task; layer 1 keeps `KEPT`."""
    torch.manual_seed(0)
    arguments = {"size": "micro", "tasks": ["depth"], "experts": 6, "top_k": 2, "expert_width": 20}
    module = visible(m3vit(**arguments).eval())
    for name, parameter in module.named_parameters():
        if "router" in name:  # small gates would send all tokens to much the same experts
            torch.nn.init.normal_(parameter, std=0.5)
    if extracted:
        keep_experts(module, {PATHS[0]: {"kept": KEPT}})
    task = TaskSpec("depth", "l1", "rmse")
    return Program(module, (task,), {"image": torch.zeros(1, 3, 64, 64)}, ModelSource("mtlc.zoo:m3vit", arguments))


def images(count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    return {"image": torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))}


def exported_layers(program: Program | None = None) -> list[ExportedLayer]:
    return quantised_layers(program or network(), "depth", images(4), images(1, seed=1))


def shipped(images: torch.Tensor) -> Program:
    """The shipped M³ViT micro (task dependence), with one task and the experts that it uses on `images`."""
    weights = EXAMPLES / "weights" / "moe_dependence.safetensors"
    arguments = {"size": "micro", "tasks": ["semseg", "depth", "normals"]}
    module = m3vit(**arguments).eval()
    load_tensors(module, weights)
    module.keep_tasks(["depth"])
    layers = moe_layers(module)
    with torch.no_grad(), observing(layers) as routed:
        module(images)
    used = {layer.path: torch.nonzero(routed.usage(layer.path) >= 0.01).flatten().tolist() for layer in layers}
    keep_experts(module, {path: {"kept": kept} for path, kept in used.items()})
    task = TaskSpec("depth", "l1", "rmse")
    return Program(module, (task,), {"image": images[:1]}, ModelSource("mtlc.zoo:m3vit", arguments))
