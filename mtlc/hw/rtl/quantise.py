"""Brings experts to INT8 as the engine takes them: weights by output, activations by tensor, GELU as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtlc.errors import UserError
from mtlc.hw.rtl.reference import Int8, QuantisedLinear, by_queues, fixed_point, linear

Floats = NDArray[np.floating]
_SMALLEST = 2.0**-12
"""The least scale of an output beside the layer's largest: below it, weights are zeros whatever their scale."""


@dataclass(frozen=True)
class Scales:
    """What one step of INT8 is worth: of the tokens, the first matrix' outputs, GELU's, and the second's outputs."""

    tokens: float
    hidden: float
    activated: float
    outputs: float


@dataclass(frozen=True)
class QuantisedExperts:
    """The experts of a layer, D → hidden → D. `activation` (256,) INT8 is GELU over the INT8 values −128 to 127."""

    first: tuple[QuantisedLinear, ...]
    second: tuple[QuantisedLinear, ...]
    activation: Int8
    scales: Scales

    def tokens(self, x: Floats) -> Int8:
        """Tokens (N, D) in INT8."""
        made: Int8 = np.clip(np.rint(x / self.scales.tokens), -128, 127).astype(np.int8)
        return made

    def run(self, x: Int8, queues: Sequence[NDArray[np.intp]]) -> tuple[list[Int8], list[Int8]]:
        """For each expert its first matrix' outputs (len(queue), hidden) before GELU, and its outputs (len(queue),
        D).
        """
        hidden = by_queues(x, queues, self.first)
        activated = (self.activation[one.astype(np.int64) + 128] for one in hidden)
        return hidden, [linear(one, layer) for one, layer in zip(activated, self.second, strict=True)]


def quantised_experts(
    weights: tuple[Floats, Floats, Floats, Floats], x: Floats, queues: Sequence[NDArray[np.intp]]
) -> QuantisedExperts:
    """Experts of `weights` (E, hidden, D), (E, hidden), (E, D, hidden), (E, D), calibrated on tokens `x` (N, D).

    `queues` holds the tokens of each expert: scales fit what really goes to it. Raises `UserError` for weights or
    tokens that are not finite, and where no token goes to any expert.
    """
    w1, b1, w2, b2 = weights
    if not all(np.isfinite(part).all() for part in (*weights, x)):
        raise UserError("weights or tokens are NaN or infinite")
    if not any(map(len, queues)):
        raise UserError("no token of the calibration samples goes to any expert: there is nothing to scale by")
    # All experts of a layer share the scales of their activations, so that tokens are quantised once and one table of
    # GELU serves all; each is calibrated on its own queue.
    before = [x[queue] @ w1[e].T + b1[e] for e, queue in enumerate(queues)]
    after = [gelu(one) @ w2[e].T + b2[e] for e, one in enumerate(before)]
    tokens, hidden, outputs = _scale([x]), _scale(before), _scale(after)
    # Between the matrices there are only 256 values, so GELU of each is all that is ever asked for.
    values = gelu(np.arange(-128, 128, dtype=np.float64) * hidden)
    activated = _scale([values])
    return QuantisedExperts(
        tuple(quantised(w, b, tokens, hidden) for w, b in zip(w1, b1, strict=True)),
        tuple(quantised(w, b, activated, outputs) for w, b in zip(w2, b2, strict=True)),
        np.clip(np.rint(values / activated), -128, 127).astype(np.int8),
        Scales(tokens, hidden, activated, outputs),
    )


def quantised(weight: Floats, bias: Floats, into: float, out: float) -> QuantisedLinear:
    """A layer (N, K) with a scale for each output's weights; `into` and `out` are the scales of what comes in and goes
    out.
    """
    largest = np.abs(weight).max(1).astype(np.float64)
    # An output whose weights are all zero still has a bias: only a scale above zero can say it.
    scale = np.maximum(largest, _SMALLEST * float(largest.max()) or 1.0) / 127
    multiplier, shift = fixed_point(scale * into / out)
    limit = 2**31 - 1
    return QuantisedLinear(
        np.rint(weight / scale[:, None]).astype(np.int8),
        # A bias counts in the unit of the sums: what one step of the input is worth times one step of the weight.
        np.clip(np.rint(bias / (scale * into)), -limit, limit).astype(np.int32),
        multiplier,
        shift,
    )


def gelu(x: Floats) -> Floats:
    """The exact GELU, as the experts compute it."""
    import torch
    from torch.nn import functional as F

    return F.gelu(torch.from_numpy(np.ascontiguousarray(x))).numpy()


def queues_of(rows: NDArray[np.int64], experts: int) -> list[NDArray[np.intp]]:
    """For each expert the tokens that have it in one of their places (N, K), in their order; −1 is no expert."""
    return [np.nonzero((rows == expert).any(1))[0] for expert in range(experts)]


def weighted_sum(
    outputs: Iterable[Floats], queues: Sequence[NDArray[np.intp]], rows: NDArray[np.int64], score: Floats, width: int
) -> Floats:
    """What the layer gives, (N, width): each token's outputs times the scores (N, K) of the places that its experts
    have.
    """
    made = np.zeros((len(rows), width))
    for expert, (tokens, one) in enumerate(zip(queues, outputs, strict=True)):
        made[tokens] += np.where(rows[tokens] == expert, score[tokens], 0).sum(1, keepdims=True) * one
    return made


def _scale(parts: Sequence[Floats]) -> float:
    """The scale that holds all values, as a number of 32 bits: a host that divides by it gets the same tokens."""
    return float(np.float32((max(float(np.abs(part).max()) for part in parts if part.size) or 1.0) / 127))
