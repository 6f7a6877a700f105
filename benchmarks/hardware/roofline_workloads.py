"""Lists the operators of the networks that published times are known of, for `roofline_fit.py`.

    pip install timm torchvision   # only for this script
    python -m benchmarks.hardware.roofline_workloads

Writes ``results/roofline_workloads.json``: for each network and input size the operators that take time of their own,
as [kind, MACs, weights, activations] (elements), traced from the definitions of timm and torchvision.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import timm
import torch
import torchvision
from timm.models._efficientnet_blocks import EdgeResidual
from torch import nn

from mtlc.hw.cost.count import workload
from mtlc.hw.devices.roofline import kernels
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec

RESULTS = Path(__file__).parents[1] / "results" / "roofline_workloads.json"


def _vision(name: str) -> Callable[[], nn.Module]:
    options = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    return lambda: torchvision.models.get_model(name, weights=None, **options)


def _timm(name: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, pretrained=False)


def _edge_tpu(name: str) -> Callable[[], nn.Module]:
    """EfficientNet-EdgeTPU as published: timm's strides of a block are in its 3×3 convolution, Google's in its 1×1."""

    def build() -> nn.Module:
        module = timm.create_model(name, pretrained=False)
        for block in module.modules():
            if isinstance(block, EdgeResidual):
                block.conv_exp.stride, block.conv_pwl.stride = (1, 1), block.conv_exp.stride
        return module

    return build


VISION = """
    alexnet squeezenet1_0 squeezenet1_1 resnet18 resnet34 resnet50 resnet101 resnet152 densenet121 densenet169
    densenet201 densenet161 vgg11 vgg13 vgg16 vgg19 mobilenet_v2 shufflenet_v2_x0_5 shufflenet_v2_x1_0
    shufflenet_v2_x1_5 shufflenet_v2_x2_0 mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 googlenet resnext50_32x4d
    """
TIMM = """
    mobilenetv1_100 mobilenetv2_140 regnetx_008 regnetx_016 efficientnet_lite0
    efficientnet_lite1 efficientnet_lite2 efficientnet_lite3 efficientnet_lite4 efficientnet_b0 inception_v4
    inception_resnet_v2 resnetv2_50 resnetv2_152 repvgg_a1 repvgg_a2 resnet26 efficientvit_b1 efficientvit_b2
    efficientvit_b3
    """
EDGE_TPU = ("efficientnet_es", "efficientnet_em", "efficientnet_el")
# Input sizes other than 224, each beside or instead of it.
SIZES = {
    "resnet50": (224, 299), "resnetv2_50": (299,), "resnetv2_152": (299,), "inception_v3": (299,),
    "inception_v4": (299,), "inception_resnet_v2": (299,), "squeezenet1_1": (224, 227), "efficientnet_em": (240,),
    "efficientnet_el": (300,), "efficientnet_lite1": (240,), "efficientnet_lite2": (260,),
    "efficientnet_lite3": (280,), "efficientnet_lite4": (300,), "efficientvit_b1": (224, 256, 288),
    "efficientvit_b2": (224, 256, 288), "efficientvit_b3": (224, 256, 288),
}  # fmt: skip


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    networks = {name: _vision(name) for name in [*VISION.split(), "inception_v3"]}
    networks |= {name: _timm(name) for name in TIMM.split()}
    networks |= {name: _edge_tpu(name) for name in EDGE_TPU}
    found = {}
    for name, build in sorted(networks.items()):
        for size in SIZES.get(name, (224,)):
            with torch.device("meta"):
                module = build().eval()
            module = module.to_empty(device="cpu")
            example = {"image": torch.zeros(1, 3, size, size)}
            program = Program(module, (TaskSpec("label", "l1", "rmse", output=""),), example, ModelSource(name))
            work = workload(program)
            found[f"{name}@{size}"] = {
                "macs": work.macs,
                "parameters": work.parameters,
                "kernels": [[k.kind, k.macs, k.weights, k.activations] for k in kernels(work)],
            }
            print(f"{name}@{size}: {work.macs / 1e9:.3f} GMACs, {work.parameters / 1e6:.1f} M parameters", flush=True)
    versions = {package: version(package).partition("+")[0] for package in ("torch", "torchvision", "timm")}
    result = {"versions": versions, "columns": ["kind", "macs", "weights", "activations"], "networks": found}
    text = json.dumps(result, separators=(",", ":"))
    RESULTS.write_text(text.replace("]]},", "]]},\n") + "\n")


if __name__ == "__main__":
    main()
