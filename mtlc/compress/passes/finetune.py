"""``finetune``: trains the network a little more, distilling from the uncompressed one if asked.

Preserves the structure; the weights change. Refuses a network with no trainable parameter.
"""

from __future__ import annotations

from mtlc.compress.pass_interface import Context, Pass, PassResult
from mtlc.compress.training.recovery import recover
from mtlc.compress.training.train_config import FinetuneConfig
from mtlc.program.program import HistoryEntry, Program


class Finetune(Pass[FinetuneConfig]):
    """Train on the train split; limits are checked at the end of the job."""

    name = "finetune"
    plans_cost = False

    def run(self, program: Program, context: Context) -> PassResult:
        tuned = program.clone()
        report = recover(tuned, context, self.config, seed=context.seed, checkpoint=context.workdir / "training")
        entry = HistoryEntry(self.name, self.config.model_dump(), [], report)
        return PassResult(program.after(tuned.module, entry), report)
