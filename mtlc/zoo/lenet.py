"""Builds `mtl_lenet`: the small network of MultiMNIST, two convolutions that tasks share and two linear layers a task.

It is LeNet (LeCun et al., 1998) as Sener and Koltun (NeurIPS 2018) and Lin et al. (NeurIPS 2019) give it several heads.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.errors import UserError
from mtlc.zoo.overlaid_pictures import TASKS


class MultiTaskLeNet(nn.Module):
    """Shared convolutions and a linear layer, and two linear layers a task; returns ``{task: (N, classes)}``."""

    def __init__(
        self, tasks: Mapping[str, int], channels: int, size: int, widths: tuple[int, int], hidden: int
    ) -> None:
        super().__init__()
        first, second = widths
        self.conv1 = nn.Conv2d(channels, first, 5)
        self.conv2 = nn.Conv2d(first, second, 5)
        side = ((size - 4) // 2 - 4) // 2  # each convolution takes 4 pixels off, each pooling halves
        self.shared = nn.Linear(second * side * side, hidden)
        self.heads = nn.ModuleDict(
            {
                task: nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes))
                for task, classes in tasks.items()
            }
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = F.relu(F.max_pool2d(self.conv1(image), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.shared(torch.flatten(x, 1)))
        return {task: head(x) for task, head in self.heads.items()}


def mtl_lenet(
    tasks: Mapping[str, int] = TASKS,
    channels: int = 1,
    size: int = 36,
    widths: tuple[int, int] = (10, 20),
    hidden: int = 50,
) -> MultiTaskLeNet:
    """The network of MultiMNIST: 47,450 parameters as it is by default.

    `tasks` gives each task's number of classes. Images are (N, `channels`, `size`, `size`), `size` at least 16.
    `widths` are the channels of the two convolutions, `hidden` those of the linear layers.
    """
    if size < 16:
        raise UserError(f"[model.args] size = {size}: give at least 16 pixels")
    if len(widths) != 2:
        raise UserError(f"[model.args] widths = {list(widths)}: give two, one a convolution")
    if not tasks or min(*tasks.values(), *widths, hidden, channels) < 1:
        raise UserError("[model.args] give at least one task, and 1 or more of classes, widths, hidden and channels")
    return MultiTaskLeNet(dict(tasks), channels, size, (widths[0], widths[1]), hidden)
