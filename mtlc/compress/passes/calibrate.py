"""``calibrate``: measures batch-norm statistics again after the structure changed.

Preserves every weight; only running means and variances change. A network without batch norm is left as it is, and a
line says so.
"""

from __future__ import annotations

from pydantic import Field

from mtlc.compress.pass_interface import Context, Pass, PassConfig, PassResult
from mtlc.compress.training.batch_norm import recalibrate_batchnorm
from mtlc.program.program import HistoryEntry, Program


class CalibrateConfig(PassConfig):
    """How many training samples the statistics are averaged over."""

    samples: int = Field(512, ge=2)
    batch_size: int = Field(64, ge=2)


class Calibrate(Pass[CalibrateConfig]):
    """Reset batch-norm statistics and average them over a part of the train split."""

    name = "calibrate"
    plans_cost = False

    def run(self, program: Program, context: Context) -> PassResult:
        calibrated = program.clone()
        layers = recalibrate_batchnorm(
            calibrated, context.splits, self.config.samples, self.config.batch_size, context.log
        )
        report = {"layers": layers, "samples": min(self.config.samples, len(context.splits.train))}
        return PassResult(
            program.after(calibrated.module, HistoryEntry(self.name, self.config.model_dump(), [], report)), report
        )
