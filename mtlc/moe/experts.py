"""Runs the experts of a layer, in three ways that agree.

`x` holds tokens (N, D); `index` (N, K) the experts that each token was routed to, −1 for none; `score` (N, K) their
weights. The result is Σ_k score_k · (W2·GELU(W1·x + b1) + b2), (N, D), with the exact GELU (M³ViT, section 3.2).

- ``reference``: token by token, as the formula reads.
- ``queue``: expert by expert. Each expert's tokens are gathered, run as one product, and added back. Training uses it.
- ``masked``: every expert on every token, weighted by the token's score or 0. No branch and no shape that depends on
  the data; E/K times the work.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from mtlc.errors import UserError

Form = Literal["queue", "masked", "reference"]
NONE = -1
"""The index of a place in a token's top-k that no expert fills."""


class ExpertLinear(nn.Module):
    """One linear layer per expert: weight (E, out, in), bias (E, out).

    Weights start uniform within ±1/√(out·in), biases at 0. That is what the official M³ViT starts with: its library
    takes a matrix of an expert for a filter of a convolution, and so spreads less than a linear layer by √out.
    """

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(experts, outputs))
        bound = 1 / math.sqrt(inputs * outputs)
        nn.init.uniform_(self.weight, -bound, bound)

    def extra_repr(self) -> str:
        experts, outputs, inputs = self.weight.shape
        return f"experts={experts}, in_features={inputs}, out_features={outputs}"


class Experts(nn.Module):
    """E two-layer perceptrons, D → hidden → D.

    `form` says how they run; exporters see one operator, ``mtlc::experts``.
    """

    def __init__(self, experts: int, width: int, hidden: int, form: Form = "queue") -> None:
        super().__init__()
        if form not in get_args(Form):
            raise UserError(f"form = {form!r}: must be one of {', '.join(get_args(Form))}")
        self.fc1 = ExpertLinear(experts, width, hidden)
        self.fc2 = ExpertLinear(experts, hidden, width)
        self.form: Form = form

    @property
    def count(self) -> int:
        return len(self.fc1.weight)

    def forward(self, x: Tensor, index: Tensor, score: Tensor) -> Tensor:
        weights = (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        if self.form == "queue" and not torch.is_grad_enabled():
            result: Tensor = torch.ops.mtlc.experts(x, index, score, *weights)
            return result
        return {"queue": run_queue, "masked": run_masked, "reference": run_reference}[self.form](
            x, index, score, *weights
        )


def run_reference(x: Tensor, index: Tensor, score: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    rows = []
    for token, chosen, scores in zip(x, index.tolist(), score, strict=True):
        total = torch.zeros_like(token)
        for place, expert in enumerate(chosen):
            if expert != NONE:
                hidden = F.gelu(w1[expert] @ token + b1[expert])
                total = total + scores[place] * (w2[expert] @ hidden + b2[expert])
        rows.append(total)
    return torch.stack(rows) if rows else torch.zeros_like(x)


def run_queue(x: Tensor, index: Tensor, score: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    places = index.flatten()
    order = torch.argsort(places, stable=True)
    counts = torch.bincount(places[order] + 1, minlength=len(w1) + 1).tolist()
    order = order[counts[0] :]  # the first queue is that of NONE
    tokens = order // index.shape[1]
    parts = [
        F.linear(F.gelu(F.linear(part, w1[expert], b1[expert])), w2[expert], b2[expert])
        for expert, part in enumerate(x[tokens].split(counts[1:]))
        if len(part)
    ]
    if not parts:
        return torch.zeros_like(x)
    made = torch.cat(parts) * score.flatten()[order].unsqueeze(1).to(parts[0].dtype)
    return torch.zeros(x.shape, dtype=made.dtype, device=x.device).index_add_(0, tokens, made)


def run_masked(x: Tensor, index: Tensor, score: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    chosen = index.unsqueeze(-1) == torch.arange(len(w1), device=index.device)
    weight = (chosen * score.unsqueeze(-1)).sum(1)  # (N, E)
    hidden = F.gelu(F.linear(x, w1.flatten(0, 1), b1.flatten())).unflatten(-1, w1.shape[:2])
    hidden = (hidden * weight.unsqueeze(-1)).flatten(1)
    result: Tensor = hidden @ w2.transpose(1, 2).flatten(0, 1) + weight @ b2
    return result


@torch.library.custom_op("mtlc::experts", mutates_args=())
def _experts(x: Tensor, index: Tensor, score: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return run_queue(x, index, score, w1, b1, w2, b2).to(x.dtype)


@_experts.register_fake
def _(x: Tensor, index: Tensor, score: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return torch.empty_like(x)


@register_flop_formula(torch.ops.mtlc.experts)
def _flops(
    x: tuple[int, int], index: tuple[int, int], _score: object, w1: tuple[int, int, int], *_: object, **__: object
) -> int:
    """Two products for every routed pair of token and expert, 2 FLOPs to a MAC."""
    return 2 * index[0] * index[1] * 2 * w1[1] * w1[2]
