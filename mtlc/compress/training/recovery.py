"""Trains a compressed network until it has made up for what it lost: what `prune`, `extract` and `finetune` share.

`slim` and `qat`, whose training steps are of their own, settle their numbers here too (`kept_recipe`). What a job
leaves to ``"auto"`` is settled first. The learning rate goes back to that of the job's ``[train]``, from where the
schedule runs again in the length of the fine-tuning (learning-rate rewinding, Renda et al., ICLR 2020). A job without
one gets the rate of a range test in the manner of Smith (WACV 2017). The epochs follow from the size of the data. In
the end batch-norm statistics are measured anew, and kept where they serve the calibration split better.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlc.checksums import read_sealed, write_sealed
from mtlc.compress.pass_interface import Context
from mtlc.compress.pipeline.identity import own_generators, tensors_hash
from mtlc.compress.training.batch_norm import recalibrate_where_better
from mtlc.compress.training.train_config import FinetuneConfig, RecoveryConfig, TrainConfig
from mtlc.compress.training.trainer import Trainer, train
from mtlc.errors import UserError
from mtlc.program.program import Program

EPOCHS, FEWEST_EPOCHS, MOST_EPOCHS = 10, 2, 40
FEWEST_STEPS, MOST_STEPS = 1500, 6000
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Learning rates that a range test tries, from below; the first that diverges is the last."""
_STEPS = (3, 12)  # fewest and most steps at a rate
_SHARE = 0.1  # of the training's steps that the test may take in all


Trainers = Callable[[Program, TrainConfig], Trainer]
"""Makes the training of a network, in place, by these settings."""


@dataclass(frozen=True)
class Recipe:
    """The numbers of a fine-tuning, and where each is from; `tried` is the range test, JSON values."""

    epochs: float
    epochs_from: str
    lr: float
    lr_from: str
    tried: dict[str, Any] | None = None

    def report(self) -> dict[str, Any]:
        told = {
            "epochs": self.epochs, "epochs_from": self.epochs_from, "lr": self.lr, "lr_from": self.lr_from,
        }  # fmt: skip
        return told if self.tried is None else told | {"range_test": self.tried}

    def line(self) -> str:
        return f"{self.epochs:g} epochs ({self.epochs_from}), learning rate {self.lr:g} ({self.lr_from})"


def recover(
    program: Program,
    context: Context,
    config: FinetuneConfig,
    *,
    seed: int,
    checkpoint: Path,
    recipe: Recipe | None = None,
    epochs: float | None = None,
) -> dict[str, Any]:
    """Fine-tune ``program.module`` in place, learning from ``context.reference`` as `config` says.

    `checkpoint` is the folder that the training's state is kept in; the recipe is kept beside it. A `recipe` that was
    settled before is taken as it is; `epochs` are those that are left of it where some were trained already. Returns
    the report of `mtlc.compress.training.trainer.train` with the ``recipe`` and ``norms``: whether the batch-norm
    statistics are those measured anew, None where none were measured. Raises what training raises.
    """
    if recipe is None:
        recipe = kept_recipe(program, context, config, seed, checkpoint)
        if "auto" in (config.epochs, config.lr):
            context.log(f"fine-tuning: {recipe.line()}")
    settings = config.fixed(recipe.epochs if epochs is None else epochs, recipe.lr)
    report = train(
        program, context.splits, context.criteria, settings, seed=seed,
        checkpoint=checkpoint, progress=context.progress, log=context.log, teacher=context.reference,
    )  # fmt: skip
    better = None
    if config.recalibrate:
        better = recalibrate_where_better(program, context.splits, context.criteria, config.recalibrate)
    if "more_epochs" in report:
        context.log(f"fine-tuning: {report['more_epochs']['line']}")
    return report | {"recipe": recipe.report(), "norms": better}


def settled(
    program: Program, context: Context, config: RecoveryConfig, seed: int, trainers: Trainers | None = None
) -> Recipe:
    """The recipe for training `program`, which stays as it is; `trainers` makes a training with steps of its own."""
    epochs, epochs_from = epochs_of(config, len(context.splits.train))
    if config.lr != "auto":
        return Recipe(epochs, epochs_from, config.lr, "given")
    if context.train_lr is not None:
        return Recipe(epochs, epochs_from, context.train_lr, "that of [train]")
    tried = range_test(program, context, config.fixed(epochs, RATES[0]), seed, trainers)
    return Recipe(epochs, epochs_from, tried["lr"], "a range test", tried)


def epochs_of(config: RecoveryConfig, samples: int) -> tuple[float, str]:
    """The epochs on that many training samples, and where the number is from.

    ``"auto"`` is `EPOCHS`, but no fewer than make `FEWEST_STEPS` and no more than make `MOST_STEPS`; of these at least
    `FEWEST_EPOCHS` and at most `MOST_EPOCHS`. How much was cut has no part in it.
    """
    if config.epochs != "auto":
        return config.epochs, "given"
    per_epoch = max(1, samples // max(1, min(config.batch_size, samples)))
    steps = min(max(EPOCHS * per_epoch, FEWEST_STEPS), MOST_STEPS)
    epochs = round(min(max(steps / per_epoch, FEWEST_EPOCHS), MOST_EPOCHS), 1)
    return epochs, f"auto: {round(epochs * per_epoch):,} steps of {min(config.batch_size, samples)} samples"


def planned_recipe(config: RecoveryConfig, samples: int, train_lr: float | None) -> dict[str, Any]:
    """What `settled` will take, as far as that is known before: JSON values."""
    epochs, epochs_from = epochs_of(config, samples)
    rate, rate_from = (config.lr, "given") if config.lr != "auto" else (train_lr, "that of [train]")
    return {
        "epochs": epochs, "epochs_from": epochs_from, "lr": rate,
        "lr_from": "a range test" if rate is None else rate_from,
    }  # fmt: skip


def range_test(
    program: Program, context: Context, config: TrainConfig, seed: int, trainers: Trainers | None = None
) -> dict[str, Any]:
    """The learning rate for `config`, found by a few steps at each of `RATES`; `program` stays as it is.

    The steps are those of a plain fine-tuning from ``context.reference``, or of what `trainers` makes.

    Every rate starts from the same weights and sees the same batches, so losses are compared with those of the same
    batches without a step. A rate descends if the last third of its steps has lower losses, in the mean over tasks of
    the ratio. Taken is the one whose ratio is least, and no more than a third of the first above it that does not
    descend. Where none descends it is the one that harms least. Returns ``lr``, the ``steps`` that it took in all, and
    what each rate came to, None where the loss was no number.
    """
    batch = min(config.batch_size, len(context.splits.train))
    planned = config.epochs * (len(context.splits.train) // batch)
    count = int(min(max(_SHARE * planned / (len(RATES) + 1), _STEPS[0]), _STEPS[1]))
    last = max(1, count // 3)

    def plain(tried: Program, settings: TrainConfig) -> Trainer:
        return Trainer(tried, context.splits, context.criteria, settings, seed, None, context.reference)

    def losses(rate: float) -> list[dict[str, float]]:
        # At a constant rate, without what does not change the losses of a few steps.
        settings = config.model_copy(update={"lr": rate, "warmup": 0.0, "final_lr": 1.0, "ema": 0.0})
        with own_generators():
            return (trainers or plain)(program.clone(), settings).first_steps(count)[-last:]

    still, found, taken = losses(1e-12), list[dict[str, Any]](), count
    names = [task.name for task in program.tasks]
    if not any(name in losses for losses in still for name in names):
        raise UserError(
            f'lr = "auto": none of the {last * batch} training samples that rates are judged by has a label; give a '
            "number"
        )
    for rate in RATES:
        taken += count
        try:
            ratios = [
                moved[name] / max(unmoved[name], 1e-12)
                for moved, unmoved in zip(losses(rate), still, strict=True)
                for name in names
                if name in unmoved  # the batches are the same, and so are the tasks that they have labels of
            ]
        except UserError:  # a loss that became no number
            ratios = [math.inf]
        ratio = sum(ratios) / len(ratios)
        found.append({"lr": rate, "loss": round(ratio, 4) if math.isfinite(ratio) else None})
        if ratio > 1 and any(one["loss"] is not None and one["loss"] < 1 for one in found):
            break
    finite = [one for one in found if one["loss"] is not None]
    best = min(finite, key=lambda one: one["loss"])["lr"] if finite else RATES[0]
    over = [one["lr"] for one in found if one["lr"] > best and (one["loss"] is None or one["loss"] > 1)]
    return {"lr": min([best, *(rate / 3 for rate in over)]), "steps": taken, "rates": found}


def kept_recipe(
    program: Program,
    context: Context,
    config: RecoveryConfig,
    seed: int,
    checkpoint: Path,
    trainers: Trainers | None = None,
) -> Recipe:
    """`settled`, or what it was before a kill: on a GPU a second range test need not end alike. It is kept beside
    `checkpoint`.
    """
    path = checkpoint.with_name(f"{checkpoint.name}-recipe.json")
    known = [tensors_hash(program), config.model_dump(mode="json"), context.train_lr, seed]
    saved = read_sealed(path, context.log)
    if saved is not None and saved["of"] == known:
        return Recipe(**saved["recipe"])
    recipe = settled(program, context, config, seed, trainers)
    if recipe.tried is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, {"of": known, "recipe": vars(recipe)})
    return recipe
