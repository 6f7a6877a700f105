"""Builds `mtl_resnet`: a shared residual encoder and one light decoder per task, for dense prediction.

The encoder is the basic-block ResNet of He et al. (CVPR 2016) with a stride-2 stem; every decoder joins the stages'
features top-down, as a feature pyramid does (Lin et al., CVPR 2017), and predicts at half the input's resolution,
upsampled bilinearly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SCENES_CHANNELS: Mapping[str, int] = {"semseg": 13, "depth": 1, "normals": 3, "edge": 1, "sal": 1}


class ConvBN(nn.Sequential):
    """Convolution without bias, and batch norm."""

    def __init__(self, cin: int, cout: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(cout)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: (N, cin, H, W) → (N, cout, H/stride, W/stride)."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(cin, cout, 3, stride)
        self.conv2 = ConvBN(cout, cout)
        self.shortcut = nn.Identity() if stride == 1 and cin == cout else ConvBN(cin, cout, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class ResidualEncoder(nn.Module):
    """(N, channels, H, W) → one feature map per stage at strides s, 2s, 4s, …, where s is the stem's."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int], channels: int = 3, stem_stride: int = 2) -> None:
        super().__init__()
        self.stem = ConvBN(channels, widths[0], 3, stem_stride)
        stages, cin = [], widths[0]
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            first = BasicBlock(cin, width, 1 if index == 0 else 2)
            stages.append(nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(depth - 1))))
            cin = width
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.stem(x))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class PyramidDecoder(nn.Module):
    """The encoder's features → (N, out, H, W): top-down sums of 1×1 laterals, each smoothed by a 3×3 convolution."""

    def __init__(self, widths: Sequence[int], width: int, out: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(cin, width, 1) for cin in widths)
        self.smooth = nn.ModuleList(ConvBN(width, width) for _ in widths[:-1])
        self.predict = nn.Conv2d(width, out, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.laterals[-1](features[-1])
        for lateral, smooth, feature in zip(
            reversed(self.laterals[:-1]), reversed(self.smooth), reversed(features[:-1]), strict=True
        ):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest") + lateral(feature)
            x = F.relu(smooth(x))
        return F.interpolate(self.predict(x), scale_factor=2.0, mode="bilinear", align_corners=False)


class MultiTaskResNet(nn.Module):
    """A `ResidualEncoder` shared by one `PyramidDecoder` per task; returns ``{task: (N, channels, H, W)}``."""

    def __init__(self, tasks: Mapping[str, int], widths: Sequence[int], depths: Sequence[int], decoder: int) -> None:
        super().__init__()
        self.encoder = ResidualEncoder(widths, depths)
        self.decoders = nn.ModuleDict({task: PyramidDecoder(widths, decoder, out) for task, out in tasks.items()})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.encoder(image)
        return {task: decoder(features) for task, decoder in self.decoders.items()}


def mtl_resnet(
    tasks: Mapping[str, int] | Sequence[str] = SCENES_CHANNELS,
    widths: Sequence[int] = (32, 64, 96, 128),
    depths: Sequence[int] = (1, 1, 1, 1),
    decoder_width: int = 24,
) -> MultiTaskResNet:
    """The reference network of the zoo.

    `tasks` gives each task's output channels, or names tasks of Scenes; `widths` and `depths` are per encoder stage.
    """
    channels = tasks if isinstance(tasks, Mapping) else {task: SCENES_CHANNELS[task] for task in tasks}
    return MultiTaskResNet(dict(channels), tuple(widths), tuple(depths), decoder_width)


def example_input(size: int = 64) -> Tensor:
    """A batch of the shape that `mtl_resnet` is made for, (2, 3, size, size)."""
    return torch.zeros(2, 3, size, size)
