"""Builds `mtl_resnet_classifier`: a residual encoder that tasks share, and a classifier of two linear layers a task.

The encoder is the basic-block ResNet of He et al. (CVPR 2016), without the pooling after the stem. With widths of (64,
128, 256, 512) and depths of (2, 2, 2, 2) it has the blocks of ResNet-18.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.errors import UserError
from mtlc.zoo.overlaid_pictures import TASKS
from mtlc.zoo.resnet import ResidualEncoder


class MultiTaskClassifier(nn.Module):
    """A `ResidualEncoder`, whose last features are averaged, and a head a task; returns ``{task: (N, classes)}``."""

    def __init__(
        self,
        tasks: Mapping[str, int],
        widths: Sequence[int],
        depths: Sequence[int],
        head_width: int,
        channels: int,
        stem_stride: int,
    ) -> None:
        super().__init__()
        self.encoder = ResidualEncoder(widths, depths, channels, stem_stride)
        self.heads = nn.ModuleDict(
            {
                task: nn.Sequential(nn.Linear(widths[-1], head_width), nn.ReLU(), nn.Linear(head_width, classes))
                for task, classes in tasks.items()
            }
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.encoder(image)[-1]
        pooled = torch.flatten(F.adaptive_avg_pool2d(features, 1), 1)
        return {task: head(pooled) for task, head in self.heads.items()}


def mtl_resnet_classifier(
    tasks: Mapping[str, int] = TASKS,
    widths: Sequence[int] = (32, 64, 96),
    depths: Sequence[int] = (1, 1, 1),
    head_width: int = 192,
    channels: int = 1,
    stem_stride: int = 2,
) -> MultiTaskClassifier:
    """A residual network for several classifications of one image, (N, `channels`, H, W).

    `tasks` gives each task's number of classes. `widths` and `depths` are the channels and the blocks of each stage;
    every stage after the first halves the resolution, and so does the stem where `stem_stride` is 2. `head_width` are
    the hidden units of each head. It has 262,708 parameters by default.
    """
    if len(widths) != len(depths) or not widths:
        raise UserError(
            f"[model.args] widths = {list(widths)}, depths = {list(depths)}: give one of each for every stage"
        )
    counts = [*tasks.values(), *widths, *depths, head_width, channels]
    if not tasks or min(counts) < 1:
        raise UserError("[model.args] give at least one task, and 1 or more of classes, widths, depths and channels")
    if stem_stride not in (1, 2):
        raise UserError(f"[model.args] stem_stride = {stem_stride}: give 1 or 2")
    return MultiTaskClassifier(dict(tasks), tuple(widths), tuple(depths), head_width, channels, stem_stride)
