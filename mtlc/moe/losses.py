"""Losses that shape the routing, from what the routers saw in a training step.

``balance`` spreads all tokens over all experts: CV²(importance) + CV²(load) for each task's gate, CV² being the
unbiased variance over the squared mean (M³ViT, section 3.2; Shazeer et al., ICLR 2017, eq. 6 and 11). It keeps every
expert in use by every task, which is what extraction cannot use. As in the official code of M³ViT, the terms of all
gates of all layers are added up, so that the weight is that of one gate, and the load compares logits with softmaxed
thresholds.

``dependence`` is the negative mutual information of tasks and experts, −I(T; E), over the batch, added up over the
layers (Mod-Squad, CVPR 2023, eq. 3): all experts in use, each by few tasks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from mtlc.moe.routing import Routing

RoutingLoss = Literal["none", "balance", "dependence"]

_NO_NOISE = 1e-6


def routing_loss(kind: RoutingLoss, routings: Iterable[Routing]) -> Tensor:
    """The sum over the layers."""
    loss = {"balance": balance, "dependence": dependence}[kind]
    return torch.stack([loss(routing) for routing in routings]).sum()


def balance(routing: Routing) -> Tensor:
    """CV²(importance) + CV²(load), the sum over the tasks of the step: each has a gate, or the one gate to itself."""
    terms = []
    for task in routing.task.unique().tolist():
        rows = routing.task == task
        first, last = (0, routing.scores.shape[-1]) if routing.spans is None else routing.spans[task]
        scores, clean, logits = (
            t[rows].flatten(0, 1)[:, first:last] for t in (routing.scores, routing.clean, routing.logits)
        )
        index = routing.index[rows].flatten(0, 1) - first
        importance = torch.zeros_like(scores).scatter(-1, index, scores.gather(-1, index)).sum(0)
        terms.append(cv_squared(importance) + cv_squared(_load(clean, logits, scores, index, routing.noise)))
    return torch.stack(terms).sum()


def dependence(routing: Routing) -> Tensor:
    """−I(T; E) in nats. P(e|t) is the mean score of expert e over the tokens of task t, tasks are equally likely."""
    tasks = routing.task.unique()
    per_task = torch.stack([routing.scores[routing.task == task].flatten(0, 1).mean(0) for task in tasks])  # (T, E)
    marginal = per_task.mean(0, keepdim=True)
    return -(per_task * (per_task.clamp_min(1e-12).log() - marginal.clamp_min(1e-12).log())).sum(1).mean()


def cv_squared(values: Tensor) -> Tensor:
    """The squared coefficient of variation: unbiased variance / (mean² + 1e-10); 0 for a single value."""
    if values.numel() == 1:
        return values.new_zeros(())
    return values.var() / (values.mean() ** 2 + 1e-10)


def _load(clean: Tensor, logits: Tensor, scores: Tensor, index: Tensor, noise: float) -> Tensor:
    """Expected tokens per expert (E,): the chance that fresh noise keeps an expert in the token's top k.

    `clean` and `logits`, without noise and with it, and `scores` are (M, E), `index` is (M, k). Shazeer et al.
    (appendix A) compare a logit with the k-th of the other logits. The official code of M³ViT takes the k-th of the
    others from the scores, which are softmaxed, and so does this: networks are trained with that loss.

    Without noise that chance is 0 or 1, and the load is a count without a gradient.
    """
    k = index.shape[-1]
    if noise <= _NO_NOISE or k == logits.shape[-1]:
        gates = torch.zeros_like(scores).scatter(-1, index, scores.gather(-1, index))
        return (gates > 0).float().sum(0)
    ordered = scores.topk(k + 1, -1).values
    to_enter, to_stay = ordered[..., k - 1 : k], ordered[..., k : k + 1]
    threshold = torch.where(logits > to_stay, to_stay, to_enter)
    result: Tensor = torch.distributions.Normal(0.0, noise).cdf(clean - threshold).sum(0)
    return result
