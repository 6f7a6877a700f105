"""Training lays images out channels last, but for the shapes that oneDNN cannot take so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtlc.compress.training.memory_layout import image_layout, lay_out

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


def test_tensors_of_five_dimensions_stay_as_they_are() -> None:
    """A detection head keeps its grid as (1, anchors, H, W, 2), which channels last does not know."""
    layer = nn.Conv2d(8, 8, 3)
    layer.register_buffer("grid", torch.arange(64.0).view(1, 2, 4, 4, 2))
    volume = nn.Conv3d(8, 8, 3)
    network = nn.Sequential(layer, volume)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert lay_out(network, torch.channels_last) is network
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert volume.weight.is_contiguous()
    assert isinstance(layer.weight, nn.Parameter)
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    lay_out(network, torch.contiguous_format)
    assert layer.weight.is_contiguous()


def test_only_weights_of_convolutions_are_laid_out() -> None:
    """A filter of complex numbers (C, h, w, 2) is one whose pairs have to lie side by side."""
    network = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ConvTranspose2d(8, 8, 3), nn.Identity())
    network[2].filter = nn.Parameter(torch.randn(8, 4, 3, 2))
    network[2].register_buffer("table", torch.randn(2, 3, 4, 5))
    lay_out(network, torch.channels_last)
    assert all(network[i].weight.is_contiguous(memory_format=torch.channels_last) for i in (0, 1))
    assert torch.view_as_complex(network[2].filter).shape == (8, 4, 3)
    assert network[2].table.is_contiguous()


def test_a_parametrized_weight_is_laid_out() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3))
    lay_out(layer, torch.channels_last)
    assert layer.parametrizations.weight.original1.is_contiguous(memory_format=torch.channels_last)
