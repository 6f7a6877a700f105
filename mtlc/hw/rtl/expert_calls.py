"""Records what the experts of a network are called with, and lets the network compute with INT8 experts instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtlc.errors import UserError
from mtlc.hw.rtl.quantise import QuantisedExperts
from mtlc.hw.rtl.reference import QuantisedLinear
from mtlc.moe.experts import Experts
from mtlc.moe.layers import KeptExperts, MoeLayer, hooking, moe_layers, routing_of

if TYPE_CHECKING:
    from mtlc.program.program import Program

_EXACT_IN_FLOAT32 = 1024
"""Features up to which a sum of INT8 products is a whole number that float32 holds: 2**14 · 1024 = 2**24."""


@dataclass(frozen=True)
class Calls:
    """Tokens `x` (N, D), for each the rows of the experts' parameters that they go to (N, K), −1 for none, and scores
    (N, K).
    """

    x: NDArray[np.float32]
    rows: NDArray[np.int64]
    score: NDArray[np.float32]


def expert_layers(program: Program) -> list[MoeLayer]:
    """The layers of experts that the engine can run. Raises `UserError` if there are none, or ones that are not
    mtlc's.
    """
    layers = moe_layers(program.module)
    if not layers:
        raise UserError("[model] the network has no mixture of experts, so there are no experts to export")
    for layer in layers:
        if not isinstance(layer.inner, Experts):
            raise UserError(
                f"layer {layer.path!r}: {type(layer.inner).__name__} are not experts of two linear layers with GELU, "
                "which the engine runs"
            )
    return layers


def expert_calls(program: Program, batch: Mapping[str, Tensor], task: str) -> dict[str, Calls]:
    """Run `task` on a batch, and note what every layer of experts is called with, by the layer's path."""
    found: dict[str, Calls] = {}

    def note(called: Sequence[MoeLayer], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        for layer in called:
            index, score = routing_of(layer.path, args, kwargs)
            rows = torch.where(index < 0, -1, layer.position[index.clamp_min(0)])
            found[layer.path] = Calls(args[0].float().numpy().copy(), rows.numpy().copy(), score.float().numpy().copy())

    program.module.eval()
    with hooking(expert_layers(program), note), torch.inference_mode():
        program.outputs(batch, (task,))
    return found


@contextmanager
def in_int8(program: Program, experts: Mapping[str, QuantisedExperts]) -> Iterator[None]:
    """Within the block the experts of the layers named compute what the engine does, to the bit; all else stays
    float.
    """
    with ExitStack() as stack:
        for layer in expert_layers(program):
            if layer.path not in experts:
                continue
            # Experts that were cut down are held by a wrapper, which keeps the map from the router's numbers; only what
            # lies inside it is exchanged.
            owner, name = (
                (layer.experts, "inner")
                if isinstance(layer.experts, KeptExperts)
                else (layer.module, layer.declaration.experts)
            )
            stack.callback(setattr, owner, name, layer.inner)
            setattr(owner, name, _Int8Experts(experts[layer.path]))
        yield


class _Int8Experts(nn.Module):
    """`QuantisedExperts` called as `mtlc.moe.experts.Experts` are."""

    def __init__(self, experts: QuantisedExperts) -> None:
        super().__init__()
        self.experts = experts
        self.first, self.second = (tuple(map(_Linear, side)) for side in (experts.first, experts.second))
        self.table = torch.from_numpy(experts.activation.astype(np.float64))

    def forward(self, x: Tensor, index: Tensor, score: Tensor) -> Tensor:
        scales = self.experts.scales
        # The division is numpy's, in float32: what rounds the other way elsewhere would be another token.
        tokens = torch.from_numpy(self.experts.tokens(x.numpy()).astype(np.float32))
        made = torch.zeros_like(x)
        for row, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            token, place = torch.nonzero(index == row, as_tuple=True)
            if len(token):
                hidden = first(tokens[token])
                y = second(self.table[hidden.long() + 128])
                made.index_add_(0, token, (y * scales.outputs).to(x.dtype) * score[token, place, None].to(x.dtype))
        return made


class _Linear:
    """`mtlc.hw.rtl.reference.linear` in torch: sums in floating point are exact, and requantised in INT64."""

    def __init__(self, layer: QuantisedLinear) -> None:
        self.dtype = torch.float32 if layer.inputs <= _EXACT_IN_FLOAT32 else torch.float64
        self.weight = torch.from_numpy(layer.weight.astype(np.float64)).to(self.dtype).T.contiguous()
        self.bias, self.multiplier, self.shift = (
            torch.from_numpy(part.astype(np.int64)) for part in (layer.bias, layer.multiplier, layer.shift)
        )

    def __call__(self, x: Tensor) -> Tensor:
        # Whole numbers that the floating point type holds exactly come out exact, in whatever order they are summed.
        sums = (x.to(self.dtype) @ self.weight).long() + self.bias
        return ((sums * self.multiplier + (1 << (self.shift - 1))) >> self.shift).clamp(-128, 127)
