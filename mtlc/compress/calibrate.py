"""``calibrate``: batch-norm statistics measured again after the structure changed.

Preserves every weight; only running means and variances change. A network without batch norm is left as it is.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from mtlc.compress.passes import Context, Pass, PassConfig, PassResult
from mtlc.data import Splits, batches
from mtlc.program import HistoryEntry, Program

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class CalibrateConfig(PassConfig):
    """How many training samples the statistics are averaged over."""

    samples: int = Field(512, ge=2)
    batch_size: int = Field(64, ge=2)


class Calibrate(Pass):
    """Reset batch-norm statistics and average them over a part of the train split."""

    name = "calibrate"
    Config = CalibrateConfig

    def run(self, program: Program, context: Context) -> PassResult:
        assert isinstance(self.config, CalibrateConfig)
        calibrated = program.clone()
        layers = recalibrate_batchnorm(calibrated, context.splits, self.config.samples, self.config.batch_size)
        report = {"layers": layers, "samples": min(self.config.samples, len(context.splits.train))}
        return PassResult(
            program.after(calibrated.module, HistoryEntry(self.name, self.config.model_dump(), [], report)), report
        )


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
