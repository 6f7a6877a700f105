"""``finetune``: trains the network a little more, distilling from the uncompressed one if asked.

Preserves the structure; the weights change. Refuses a network with no trainable parameter.
"""

from __future__ import annotations

from typing import Any

from mtlc.compress.pass_interface import Context, Pass, PassResult
from mtlc.compress.training.recovery import recover
from mtlc.compress.training.train_config import FinetuneConfig
from mtlc.compress.training.trainer import untrained
from mtlc.program.program import HistoryEntry, Program


class Finetune(Pass[FinetuneConfig]):
    """Train on the train split; limits are checked at the end of the job."""

    name = "finetune"
    plans_cost = False

    def run(self, program: Program, context: Context) -> PassResult:
        tuned = program.clone()
        if self.config.epochs == 0:
            context.log("finetune: epochs = 0: nothing is trained")
            report = untrained(tuned)
            return PassResult(program.after(tuned.module, self._entry(report)), report)
        report = recover(tuned, context, self.config, seed=context.seed, checkpoint=context.workdir / "training")
        return PassResult(program.after(tuned.module, self._entry(report)), report)

    def _entry(self, report: dict[str, Any]) -> HistoryEntry:
        return HistoryEntry(self.name, self.config.model_dump(), [], report)
