"""Measures the statistics of batch norms anew, on calibration data."""

from __future__ import annotations

import torch
from torch import nn

from mtlc.evaluation.splits import Splits, batches
from mtlc.program.program import Program

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def recalibrate_batchnorm(program: Program, splits: Splits, samples: int = 512, batch_size: int = 64) -> int:
    """Set the running statistics to their cumulative average over training samples; returns how many layers were set.

    Only batch norms run in training mode, so dropout and the like stay off.
    """
    norms = [m for m in program.module.modules() if isinstance(m, _NORMS) and m.track_running_stats]
    if not norms or min(samples, len(splits.train)) < 2:  # one sample may have no variance: keep the statistics
        return 0
    program.module.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    with torch.no_grad():
        for batch in batches(splits.train, batch_size, samples):
            if len(next(iter(batch.values()))) > 1:
                program.module(*(batch[name] for name in program.inputs))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    program.module.eval()
    return len(norms)
