"""Networks of real size for the benchmarks of this folder: bottleneck ResNets with a segmentation and a depth decoder.

The encoder is that of He et al. (CVPR 2016) with depths (3, 4, 6, 3) for 50 layers; each task has a pyramid decoder
(`mtlc.zoo.resnet.PyramidDecoder`) of 128 channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec
from mtlc.zoo.resnet import ConvBN, PyramidDecoder

CLASSES = 21
SIZES = {"5M": ((2, 2, 2, 2), 32), "25M": ((3, 4, 6, 3), 64), "50M": ((3, 4, 23, 3), 64)}
"""By name, the blocks of each stage, and the channels of the first stage's 3×3 convolutions."""


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions around a shortcut: (N, cin, H, W) → (N, 4 · width, H/stride, W/stride)."""

    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        self.reduce, self.conv = ConvBN(cin, width, 1), ConvBN(width, width, 3, stride)
        self.expand = ConvBN(width, 4 * width, 1)
        same = stride == 1 and cin == 4 * width
        self.shortcut = nn.Identity() if same else ConvBN(cin, 4 * width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.conv(F.relu(self.reduce(x))))
        return F.relu(self.expand(inner) + self.shortcut(x))


class TwoHeads(nn.Module):
    """(N, 3, H, W) → {"semseg": (N, 21, H/2, W/2), "depth": (N, 1, H/2, W/2)}."""

    def __init__(self, depths: Sequence[int], width: int) -> None:
        super().__init__()
        self.stem = ConvBN(3, width, 7, 2)
        stages, cin = [], width
        for index, depth in enumerate(depths):
            inner = width * 2**index
            blocks = [Bottleneck(cin, inner, 1 if index == 0 else 2)]
            blocks += [Bottleneck(4 * inner, inner, 1) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
            cin = 4 * inner
        self.stages = nn.ModuleList(stages)
        widths = [4 * width * 2**index for index in range(len(depths))]
        self.semseg = PyramidDecoder(widths, 128, CLASSES)
        self.depth = PyramidDecoder(widths, 128, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = F.max_pool2d(F.relu(self.stem(image)), 3, 2, 1)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return {"semseg": self.semseg(features), "depth": self.depth(features)}


def two_heads(size: str = "25M") -> nn.Module:
    """The network of `SIZES` with random weights. Its batch norms are as after training: they keep the maps' scale."""
    depths, width = SIZES[size]
    network = TwoHeads(depths, width)
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if name.endswith("expand.bn"):
            nn.init.constant_(layer.weight, 0.3)  # type: ignore[arg-type]
    return network


class Pictures:
    """Smooth random pictures, and the labels that a network gives them: (3, size, size), (size/2, size/2) each."""

    def __init__(self, count: int, size: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.randn(count, 3, size // 16, size // 16, generator=generator)
        fine = 0.3 * torch.randn(count, 3, size // 2, size // 2, generator=generator)
        self.images = F.interpolate(coarse, (size, size), mode="bicubic") + F.interpolate(fine, (size, size))
        self.labels: dict[str, Tensor] = {}

    def taught_by(self, network: nn.Module) -> Pictures:
        """Labels by the network itself, so that every cut of it costs: the likeliest class, its depth and noise."""
        with torch.inference_mode():
            outputs = [network.eval()(image[None]) for image in self.images]
        depth = torch.cat([one["depth"] for one in outputs])
        noise = torch.randn(depth.shape, generator=torch.Generator().manual_seed(1))
        self.labels = {
            "semseg": torch.cat([one["semseg"].argmax(1) for one in outputs]),
            "depth": depth + 0.1 * depth.std() * noise,
        }
        return self

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], **{name: label[index] for name, label in self.labels.items()}}


def program_of(size: str, pixels: int, seed: int = 0) -> Program:
    """The network as a program of two tasks; its batch norms have the statistics of eight pictures."""
    torch.manual_seed(seed)
    source = ModelSource("benchmarks.scale.resnets:two_heads", {"size": size})
    module: Any = source.build()
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
    with torch.no_grad():
        for image in Pictures(8, pixels, seed + 1).images.split(4):
            module.train()(image)
    for norm in norms:
        norm.momentum = 0.1
    tasks = (
        TaskSpec("semseg", "cross_entropy", "miou", target="semseg"),
        TaskSpec("depth", "l1", "rmse", target="depth"),
    )
    return Program(module.eval(), tasks, {"image": torch.zeros(2, 3, pixels, pixels)}, source)
