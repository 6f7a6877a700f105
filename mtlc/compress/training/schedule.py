"""Says what the learning rate is at a step, what is decayed, and how the weights' moving average moves."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from mtlc.compress.training.train_config import TrainConfig
from mtlc.errors import UserError


def rate_share(step: int, steps: int, config: TrainConfig) -> float:
    """The share of `lr` at `step` of `steps`: linear warm-up, then half a cosine down to `final_lr`."""
    warm = config.warmup * steps
    if step < warm:
        # Never 0, which would waste the first step, and 1 where the cosine takes over.
        return (step + 1) / (warm + 1)
    share = (step - warm) / max(1.0, steps - warm)
    return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * share))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices and kernels, not norms and biases (Loshchilov and Hutter, 2019, in common practice)."""
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise UserError("[train] every parameter of the network is frozen (requires_grad is False): nothing to train")
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def average_decay(step: int, ema: float) -> float:
    """The decay of the moving average after `step`: `ema`, or less at first (0.1, 0.18, 0.25, …).

    Or the mean would hold on to the weights before training. (1 + s) / (10 + s) looks back over (10 + s) / 9 steps, so
    however short a training is, at its end the mean is over about its last ninth, and over 1 / (1 - ema) steps at most.
    """
    return min(ema, (1 + step) / (10 + step))


@torch.no_grad()
def move_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move `average` towards `module`; integer buffers are copied.

    Torch's `AveragedModel` would give other numbers: its first update copies the weights whatever the decay is, its
    decay cannot change with the step, and its state has one more entry than the network's.
    """
    pairs = zip(average.state_dict().values(), module.state_dict().values(), strict=True)
    floating = []
    for mean, value in pairs:
        if mean.is_floating_point():
            floating.append((mean, value))
        else:
            mean.copy_(value)
    torch._foreach_lerp_([mean for mean, _ in floating], [value for _, value in floating], 1 - decay)
