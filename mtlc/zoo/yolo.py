"""Builds `mtl_yolo`: an anchor-free detector and dense tasks on one residual encoder.

The detector is of the kind of YOLOX (Ge et al., 2021) and FCOS (Tian et al., ICCV 2019): a feature pyramid, and at
each of its levels two towers of convolutions, one for classes and one for boxes and objectness. Its output is raw;
`mtlc.detection` says how it becomes boxes. The dense tasks have the decoders of `mtl_resnet`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.zoo.resnet import ConvBN, PyramidDecoder, ResidualEncoder
from mtlc.zoo.scenes import OBJECTS

DENSE_CHANNELS: Mapping[str, int] = {"floor": 2, "depth": 1, "edge": 1, "normals": 3}
STRIDES = (4, 8)
"""Of the pyramid's levels that predict boxes. The objects of Scenes at 64 × 64 are 4 to 40 pixels wide."""
_PRIOR = 0.01
"""What a new network says of every point: almost all are background (Lin et al., ICCV 2017, section 4.1)."""


class Tower(nn.Sequential):
    """Two 3×3 convolutions: (N, width, H, W) → the same."""

    def __init__(self, width: int) -> None:
        super().__init__(ConvBN(width, width), nn.ReLU(), ConvBN(width, width), nn.ReLU())


class LevelHead(nn.Module):
    """What one level of the pyramid predicts: (N, width, H, W) → (N, 5 + classes, H, W), a box, objectness, classes."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.box_tower, self.class_tower = Tower(width), Tower(width)
        self.box, self.objectness = nn.Conv2d(width, 4, 1), nn.Conv2d(width, 1, 1)
        self.classes = nn.Conv2d(width, classes, 1)
        for layer in (self.objectness, self.classes):
            nn.init.constant_(layer.bias, -math.log(1 / _PRIOR - 1))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        boxes, classes = self.box_tower(x), self.class_tower(x)
        return torch.cat([self.box(boxes), self.objectness(boxes), self.classes(classes)], 1)


class Detector(nn.Module):
    """Feature maps at strides 4, 8, 16, … → raw detections (N, A, 5 + classes) at `STRIDES`.

    The coarser maps are added to the finer ones from the top down, as in `PyramidDecoder`.
    """

    def __init__(self, widths: Sequence[int], width: int, classes: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(cin, width, 1) for cin in widths)
        self.smooth = nn.ModuleList(ConvBN(width, width) for _ in STRIDES)
        self.heads = nn.ModuleList(LevelHead(width, classes) for _ in STRIDES)

    def forward(self, features: list[Tensor]) -> Tensor:
        laterals = [lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True)]
        x, levels = laterals[-1], []
        for place in reversed(range(len(laterals) - 1)):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest") + laterals[place]
            if place < len(STRIDES):
                x = F.relu(self.smooth[place](x))
                levels.append(self.heads[place](x))
        flat = [level.flatten(2) for level in reversed(levels)]
        return torch.cat(flat, 2).transpose(1, 2)


class MultiTaskYolo(nn.Module):
    """A `ResidualEncoder` shared by a `Detector` and one `PyramidDecoder` for each dense task.

    Returns ``{"detection": (N, A, 5 + classes), task: (N, channels, H, W)}``.
    """

    def __init__(
        self,
        tasks: Mapping[str, int],
        classes: int,
        widths: Sequence[int],
        depths: Sequence[int],
        head: int,
        decoder: int,
    ) -> None:
        super().__init__()
        self.encoder = ResidualEncoder(widths, depths)
        self.detector = Detector(widths[1:], head, classes)
        self.decoders = nn.ModuleDict({task: PyramidDecoder(widths, decoder, out) for task, out in tasks.items()})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.encoder(image)
        dense = {task: decoder(features) for task, decoder in self.decoders.items()}
        return {"detection": self.detector(features[1:]), **dense}


def mtl_yolo(
    tasks: Mapping[str, int] | Sequence[str] = DENSE_CHANNELS,
    classes: int = len(OBJECTS),
    widths: Sequence[int] = (24, 48, 72, 96),
    depths: Sequence[int] = (1, 1, 1, 1),
    head_width: int = 32,
    decoder_width: int = 16,
) -> MultiTaskYolo:
    """The detector of the zoo, for pictures whose sides are multiples of 16.

    `tasks` gives each dense task's output channels, or names those of `DENSE_CHANNELS`; `classes` are those of boxes;
    `widths` and `depths` are per encoder stage, at strides 2, 4, 8, 16.
    """
    channels = tasks if isinstance(tasks, Mapping) else {task: DENSE_CHANNELS[task] for task in tasks}
    return MultiTaskYolo(dict(channels), classes, tuple(widths), tuple(depths), head_width, decoder_width)
