"""Training lays images out channels last, but for the shapes that oneDNN cannot take so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtlc.compress.training.memory_layout import image_layout

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("layer", "layout"),
    [
        (nn.Conv2d(4, 8, 1, stride=2), torch.contiguous_format),
        (nn.Conv2d(7, 8, 1, stride=(1, 2)), torch.contiguous_format),
        (nn.Conv2d(8, 8, 1, stride=2), torch.channels_last),
        (nn.Conv2d(4, 8, 1), torch.channels_last),
        (nn.Conv2d(4, 8, 3, stride=2), torch.channels_last),
        (nn.Conv2d(4, 4, 1, stride=2, groups=4), torch.channels_last),
    ],
)
def test_a_narrow_strided_convolution_decides(layer: nn.Conv2d, layout: torch.memory_format) -> None:
    assert image_layout(nn.Sequential(nn.ReLU(), layer), CPU) is layout
    assert image_layout(layer, torch.device("cuda")) is torch.channels_last
