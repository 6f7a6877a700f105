"""Routes tokens: which experts a token goes to, and with what weight.

s = softmax(x·W) over all E experts, the K largest taken as they are, without renormalisation (M³ViT, eq. 1). Among
equal scores the expert of the lower index comes first: `torch.topk` leaves that open, ONNX fixes it so, and the network
must route alike wherever it runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mtlc.errors import UserError
from mtlc.moe.experts import NONE

Gate = Literal["multi", "conditioned", "single"]
REPRESENTATION = 64
NORM_EPS = 1e-6
"""Of every layer norm of M³ViT, as in the official code: in the blocks, the heads and the task representation."""


@dataclass(frozen=True)
class Routing:
    """What a router did in a training step: for each row its task (R,), logits without noise and with it and scores
    (R, N, E), choice (R, N, K). `spans` are the router's.
    """

    task: Tensor
    tasks: int
    clean: Tensor
    logits: Tensor
    scores: Tensor
    index: Tensor
    noise: float
    spans: tuple[tuple[int, int], ...] | None = None


class Router(nn.Module):
    """Scores of E experts for tokens (R, N, D) of rows that each belong to a task (R,) or (1,).

    `gate` is ``"multi"`` (a matrix per task, weight (T, D, E)), ``"conditioned"`` (one matrix over the token and the
    task's representation, (1, D + 64, E)) or ``"single"`` (one for all, (1, D, E)). `noise` is the standard deviation
    of what is added to the logits in training, in units of 1/E, or of 1/`experts_per_task`.

    With `experts_per_task` a task may use the experts `spans`[task] only, first and past the last, of a gate that all
    tasks share: the softmax is over those, and so is the unit of the noise. A score that is not above
    `prune_threshold` becomes 0 once the experts are chosen. Both are options of the official code
    (``regu_experts_fromtask``, ``expert_prune``).

    After extraction `kept` says which experts are left; with `reroute` a token takes the best of those, otherwise the
    place of a dropped expert stays empty.
    """

    kept: Tensor | None

    def __init__(
        self, gate: Gate, tasks: int, width: int, experts: int, top_k: int, noise: float = 0.0,
        prune_threshold: float = 0.0, experts_per_task: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if gate not in get_args(Gate):
            raise UserError(f"gate = {gate!r}: must be one of {', '.join(get_args(Gate))}")
        if not 1 <= top_k <= experts:
            raise UserError(f"top_k = {top_k}: must lie between 1 and the number of experts, {experts}")
        if not 0 <= prune_threshold < 1:
            raise UserError(f"prune_threshold = {prune_threshold}: must be a score, at least 0 and below 1")
        self.spans = None if experts_per_task is None else _spans(gate, tasks, experts, top_k, experts_per_task)
        self.prune_threshold = prune_threshold
        self.gate, self.top_k, self.noise = gate, top_k, noise
        self.choices = experts_per_task or experts
        self.reroute = False
        rows, inputs = (tasks if gate == "multi" else 1), width + (REPRESENTATION if gate == "conditioned" else 0)
        self.weight = nn.Parameter(torch.empty(rows, inputs, experts))
        # The official gate is initialised as a linear layer of the transposed shape: its fan-in is E, whatever D is.
        bound = 1 / math.sqrt(experts)
        nn.init.uniform_(self.weight, -bound, bound)
        self.register_buffer("kept", None)
        self.tasks = tasks
        self.routing: Routing | None = None

    def forward(self, x: Tensor, task: Tensor, representation: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores (R, N, K) and experts (R, N, K)."""
        clean = logits = self._logits(x, task, representation)
        if self.training and self.noise:
            logits = clean + torch.randn_like(logits) * (self.noise / self.choices)
        scores = logits.softmax(-1)
        index = top_k(self.eligible(scores), self.top_k)
        chosen = scores.gather(-1, index)
        if self.training:
            self.routing = Routing(
                task.expand(x.shape[0]), self.tasks, clean, logits, scores, index, self.noise / self.choices, self.spans
            )
        if self.prune_threshold:
            chosen = torch.where(chosen > self.prune_threshold, chosen, 0.0)
        if self.kept is not None:  # with `reroute` too: there may be fewer experts left than places
            index = torch.where(self.kept[index], index, NONE)
        return chosen, index

    def scores(self, x: Tensor, task: Tensor, representation: Tensor | None = None) -> Tensor:
        """Scores of all experts, (R, N, E), without noise."""
        return self._logits(x, task, representation).softmax(-1)

    def eligible(self, scores: Tensor) -> Tensor:
        """The scores to choose from: with `reroute`, −1 for experts that are gone."""
        return torch.where(self.kept, scores, -1.0) if self.kept is not None and self.reroute else scores

    def _logits(self, x: Tensor, task: Tensor, representation: Tensor | None) -> Tensor:
        if representation is not None:
            x = torch.cat([x, representation.unsqueeze(1).expand(x.shape[0], x.shape[1], -1)], -1)
        logits = (x @ (self.weight[task] if self.gate == "multi" else self.weight)).float()
        if self.spans is None:
            return logits
        span = torch.tensor(self.spans, device=x.device)[task].unsqueeze(1)  # (R or 1, 1, 2)
        expert = torch.arange(logits.shape[-1], device=x.device)
        return torch.where((expert >= span[..., :1]) & (expert < span[..., 1:]), logits, -torch.inf)

    def keep_tasks(self, places: Sequence[int]) -> None:
        """Keep the tasks of these places, in this order, and drop what belongs to the others alone."""
        self.tasks = len(places)
        if self.gate == "multi":
            self.weight = nn.Parameter(self.weight.detach()[list(places)].clone(), self.weight.requires_grad)
        if self.spans is not None:
            self.spans = tuple(self.spans[place] for place in places)

    def __getstate__(self) -> dict[str, Any]:
        # The last step's routing hangs on its graph, which cannot be copied, and is no part of the network.
        return {**self.__dict__, "routing": None}


class TaskRepresentation(nn.Module):
    """One-hot task → Linear(T, 64) → GELU → Linear(64, 64) → LayerNorm: (R,) → (R, 64), for task-conditioned gates."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(tasks, REPRESENTATION)
        self.fc2 = nn.Linear(REPRESENTATION, REPRESENTATION)
        self.norm = nn.LayerNorm(REPRESENTATION, NORM_EPS)

    def forward(self, task: Tensor) -> Tensor:
        result: Tensor = self.norm(self.fc2(nn.functional.gelu(self.fc1.weight.T[task] + self.fc1.bias)))
        return result


def _spans(gate: Gate, tasks: int, experts: int, top_k: int, per_task: int) -> tuple[tuple[int, int], ...]:
    """By task the first and past the last of the experts that it may use, as the official code has them.

    There the start of each task is that of the one before plus t·(E − n)/(T − 1), rounded down. From three tasks on the
    starts run ahead of E − n, and what would lie past the last expert is cut off.
    """
    name = f"experts_per_task = {per_task}"
    if gate == "multi":
        raise UserError(f'{name}: with gate = "multi" the official code names experts past the last one; leave it out')
    if tasks < 2:
        raise UserError(f"{name}: needs two tasks or more to divide the experts among; leave it out")
    if not top_k < per_task <= experts:
        raise UserError(f"{name}: must be above top_k, {top_k}, and at most the number of experts, {experts}")
    spans, start = [], 0
    for task in range(tasks):
        start += task * (experts - per_task) // (tasks - 1)
        spans.append((start, min(start + per_task, experts)))
        if spans[-1][1] - start <= top_k:
            raise UserError(
                f"{name}: of {experts} experts {max(0, experts - start)} are left for task {task} counted from 0, "
                f"which must be more than top_k, {top_k}"
            )
    return tuple(spans)


def top_k(scores: Tensor, k: int) -> Tensor:
    """Indices (…, k) of the k largest along the last dimension, the lower index first among equals."""
    result: Tensor = torch.ops.mtlc.top_k(scores.detach(), k)
    return result


@torch.library.custom_op("mtlc::top_k", mutates_args=())
def _top_k(scores: Tensor, k: int) -> Tensor:
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :k].contiguous()


@_top_k.register_fake
def _(scores: Tensor, k: int) -> Tensor:
    return scores.new_empty((*scores.shape[:-1], k), dtype=torch.int64)


@torch.utils.flop_counter.register_flop_formula(torch.ops.mtlc.top_k)
def _no_macs(*_: object, **__: object) -> int:
    return 0
