"""Makes the experts of an untrained M³ViT as strong as linear layers.

They start so small that they add hardly anything to a token. What a test looks for in them would not show.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from mtlc.moe.experts import ExpertLinear


def visible(network: nn.Module) -> nn.Module:
    """Spread the weights of every expert within ±1/√in, as those of a linear layer, in place."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, ExpertLinear):
                module.weight.mul_(math.sqrt(module.weight.shape[1]))
    return network
