"""Chooses how images lie in memory while a network trains: channels last, unless oneDNN would write past a buffer."""

from __future__ import annotations

import torch
from torch import nn

_NARROW = 8
"""Input channels of one AVX2 register of float32: fewer take oneDNN's path for a rest of channels."""


def image_layout(module: nn.Module, device: torch.device) -> torch.memory_format:
    """``channels_last``, in which convolutions are fastest, or ``contiguous_format`` where that is not safe.

    On processors with AVX2 and no AVX-512, with one thread, the gradient of the weight of a strided 1×1 convolution of
    fewer than 8 input channels writes past oneDNN's buffer if images lie channels last (torch 2.13.0, found with
    glibc's heap check). The process then aborts, now or later. Nothing of it shows in the numbers, so the shape
    decides, on every processor: a network trains alike everywhere.
    """
    convolutions = (layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    if device.type == "cpu" and any(_overruns(layer) for layer in convolutions):
        return torch.contiguous_format
    return torch.channels_last


def lay_out(module: nn.Module, layout: torch.memory_format) -> nn.Module:
    """Put the weights of all convolutions over images into `layout`, in place, and return the module.

    Other tensors stay as they lie: only their layer knows what their dimensions mean. One of four dimensions may hold
    complex numbers, which torch views as such only while their pairs lie side by side.
    """
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                for tensor in layer.parameters():
                    if tensor.ndim == 4:
                        tensor.data = tensor.data.contiguous(memory_format=layout)
    return module


def _overruns(layer: nn.Conv2d) -> bool:
    strided = any(step > 1 for step in layer.stride)
    channels = layer.weight.shape[1] if layer.groups == 1 else 0  # of the weight: a slimmable layer runs a slice of it
    return layer.kernel_size == (1, 1) and strided and 0 < channels < _NARROW
