"""Computes the published formula of a layer of experts that runs expert by expert.

It is that of M³ViT's accelerator: while one expert computes, the weights of the next are loaded, so each takes the
longer of the two.

    load    │ A₀ │ A₁      │ A₂ │
    compute      │ queue 0 │····│ queue 1 │ queue 2 │
"""

from __future__ import annotations

from collections.abc import Sequence


def reordered_layer(queues: Sequence[float], per_token: float, load: float, first_is_there: bool = False) -> float:
    """Cycles of a layer expert by expert: load(A₀) + Σ max(c·|queue_i|, load(A_{i+1})), the last without a load.

    `queues` are the tokens of each expert, those without any left out; `per_token` is c and `load` an expert's, in
    cycles.
    """
    active = [queue for queue in queues if queue]
    total = 0.0 if first_is_there or not active else load
    for place, queue in enumerate(active):
        total += max(per_token * queue, load if place + 1 < len(active) else 0.0)
    return total
