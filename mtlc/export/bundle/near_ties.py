"""Finds samples in which two experts score almost the same, so that rounding decides where a token goes.

Top-k routing is not continuous. Where a token's k-th and next score differ by less than rounding, another order of
summation sends it to another expert, and the output changes by far more than rounding. That is no fault of an export,
and no tolerance covers it; what can be told is that it happened in such a sample::

    scores of a token   .41   .32 | .319   .02      k = 2: the cut lies between .32 and .319
                        chosen    | refused         gap = 1 - .319 / .32, a share of the chosen score
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtlc.moe.routing import Router
from mtlc.program.program import Program

NEAR_TIE = 1e-4
"""Two scores are nearly tied where they differ by less than this share of the larger.

Logits of one network differ between backends by some 1e-5, and the ratio of two scores differs as their logits do.
"""


def routing_margins(program: Program, batch: Mapping[str, Tensor], task: str) -> Tensor:
    """By sample (n,) the least difference between the last chosen and the best refused score of any token and layer, as
    a share of the chosen one.

    Exact ties do not count: the lower index wins them wherever the network runs. Infinite for a network without
    routers of ours, and where every expert is chosen.
    """
    least = torch.full((len(next(iter(batch.values()))),), torch.inf)
    routers = [module for module in program.module.modules() if isinstance(module, Router)]
    if not routers:
        return least

    def look(router: Router, inputs: tuple[Any, ...], _output: Any) -> None:
        scores = router.eligible(router.scores(*inputs))
        if scores.shape[-1] > router.top_k:
            best = scores.topk(router.top_k + 1, -1).values
            gap = 1 - best[..., -1] / best[..., -2].clamp_min(torch.finfo(best.dtype).tiny)
            gap = torch.where(gap > 0, gap, torch.inf)  # equal columns of a router tie everywhere, and alike
            torch.minimum(least, gap.flatten(1).amin(1), out=least)

    hooks = [router.register_forward_hook(look) for router in routers]
    try:
        with torch.no_grad():
            program.outputs(batch, [task])
    finally:
        for hook in hooks:
            hook.remove()
    return least
