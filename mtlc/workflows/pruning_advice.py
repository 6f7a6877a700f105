"""Says of a job's pruning whether its fine-tuning is long and fast enough to be worth it, before anything runs.

Going back to the training's rate recovers more than a lower one at the same number of epochs (learning-rate rewinding,
Renda et al., ICLR 2020). A narrower network trained from scratch matches a pruned one that is fine-tuned briefly (Liu
et al., ICLR 2019). ``docs/results.md`` has what was measured here: 0.8 of the training's epochs are ahead of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from mtlc.compress.passes.prune import PruneConfig
from mtlc.compress.pipeline.identity import Step
from mtlc.compress.training.recovery import epochs_of
from mtlc.compress.training.train_config import TrainConfig

_LONG_ENOUGH = 0.5
"""Of the training's epochs: a round number below the 0.8 at which pruning was measured to be ahead."""


def pruning_advice(
    steps: Sequence[Step], share: float | None, trained: TrainConfig | None, samples: int, learned: bool
) -> list[str]:
    """Lines for a person, none if there is nothing to say.

    `share` is what the budget leaves of the original's cost, None where that is not known; `trained` is how the job
    trains the original (``[train]``), on `samples` samples; `learned` is whether its weights are there.
    """
    found: list[str] = []
    for step in steps:
        config = step.config
        if not isinstance(config, PruneConfig) or config.finetune is None or share is None or share >= 1:
            continue
        epochs = config.rounds_for(share) * epochs_of(config.finetune, samples)[0]
        rate = config.finetune.lr
        if trained is not None and rate != "auto" and rate < trained.lr:
            found.append(
                f"{step.where}: finetune.lr = {rate:g} is below the training's {trained.lr:g}; going back to that "
                'recovers more as a rule: finetune.lr = "auto"'
            )
        if trained is not None and epochs < _LONG_ENOUGH * trained.epochs:
            found.append(
                f"{step.where}: fine-tuning takes {epochs:g} epochs, the training took {trained.epochs:g}; with so few "
                "a narrower network trained from scratch may be as good: raise finetune.epochs"
            )
        if not learned:
            found.append(
                f"{step.where}: the network is not trained yet; one that is trained only to be pruned costs more "
                "training than a narrower one from scratch"
            )
    return found
