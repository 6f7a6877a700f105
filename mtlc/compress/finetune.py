"""``finetune``: train the network a little more, distilling from the uncompressed one if asked.

Preserves the structure; the weights change. Refuses a network with no trainable parameter.
"""

from __future__ import annotations

from pydantic import Field

from mtlc.compress.passes import Context, Pass, PassResult
from mtlc.compress.training import TrainConfig, train
from mtlc.program import HistoryEntry, Program


class FinetuneConfig(TrainConfig):
    """`TrainConfig` with the defaults of fine-tuning: few epochs, half the learning rate, some distillation."""

    epochs: float = Field(5, gt=0)
    lr: float = Field(1e-3, gt=0)
    distill: float = Field(0.5, ge=0)


class Finetune(Pass):
    """Train on the train split; limits are checked at the end of the job."""

    name = "finetune"
    Config = FinetuneConfig

    def run(self, program: Program, context: Context) -> PassResult:
        assert isinstance(self.config, FinetuneConfig)
        tuned = program.clone()
        report = train(
            tuned,
            context.splits,
            context.criteria,
            self.config,
            seed=context.seed,
            checkpoint=context.workdir / "training",
            progress=context.progress,
            log=context.log,
            teacher=context.reference,
        )
        entry = HistoryEntry(self.name, self.config.model_dump(), [], report)
        return PassResult(program.after(tuned.module, entry), report)
