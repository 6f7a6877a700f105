"""A network of two tasks around a sparse block of transformers, which mtlc did not make."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

EXPERTS, TOP_K, WIDTH = 5, 2, 16


class Foreign(nn.Module):
    """image (N, 3, 16, 16) ── stem ── sparse block ─┬─ depth (N, 1, 4, 4)
    └─ semseg (N, 3, 4, 4)
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 4, 4)
        self.sparse = block
        self.depth = nn.Conv2d(WIDTH, 1, 1)
        self.semseg = nn.Conv2d(WIDTH, 3, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.stem(image)
        tokens = features.flatten(2).transpose(1, 2).contiguous()
        mixed = (tokens + self.sparse(tokens)).transpose(1, 2).unflatten(2, features.shape[2:])
        return {"depth": self.depth(mixed), "semseg": self.semseg(mixed)}


def mixtral(implementation: str = "batched_mm", unused: Sequence[int] = ()) -> nn.Module:
    """`unused` experts have a router row that no token likes."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=WIDTH, intermediate_size=24, num_local_experts=EXPERTS, num_experts_per_tok=TOP_K
    )
    config._experts_implementation = implementation
    torch.manual_seed(0)
    network = Foreign(MixtralSparseMoeBlock(config))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():  # the first feature is 10 for every token, and the router reads it
        network.stem.weight[0], network.stem.bias[0] = 0, 10
        for expert in unused:
            network.sparse.gate.weight[expert, 0] = -10
    return network.eval()
