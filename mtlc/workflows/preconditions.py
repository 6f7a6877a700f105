"""Checks what a job's network and data must do before hours of work begin: in `mtlc plan` and before a first pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mtlc.compress.pass_interface import Context
from mtlc.compress.passes.registry import pass_type
from mtlc.compress.pipeline.identity import Step, evaluation_hash
from mtlc.compress.training.first_step import check_first_step
from mtlc.compress.training.train_config import RecoveryConfig, TrainConfig
from mtlc.errors import MtlcError, UserError
from mtlc.evaluation.label_check import SPLITS, LabelCheck
from mtlc.evaluation.repeatability import check_repeatable
from mtlc.evaluation.splits import fetch
from mtlc.files import cache_folder, write_json
from mtlc.log import Log, silent
from mtlc.workflows.opened_job import Opened
from mtlc.workflows.planned_passes import beyond, least_cost, pass_plans, planned_budget

_SAMPLES = 4


@dataclass(frozen=True)
class Training:
    """A training that a job asks for: where it does, its settings, whether batch norms keep their statistics, and
    whether there is an uncompressed network to learn from.
    """

    where: str
    config: TrainConfig
    frozen_norms: bool = False
    teacher: bool = True


def trainings(steps: Sequence[Step]) -> list[Training]:
    """The trainings of a job's passes: every `TrainConfig` and `RecoveryConfig` among their settings."""
    found, all_tasks = [], True
    for step in steps:
        kind = pass_type(step.name)
        all_tasks = all_tasks and kind.keeps_tasks
        for config in _configs(step.config):
            # How many tasks are left of a network that loses some is not known yet.
            settings = config if all_tasks else config.model_copy(update={"tasks_per_sample": None})
            found.append(Training(step.where, settings, not kind.trains_norms))
    return found


def check_preconditions(opened: Opened, asked: Sequence[Training], log: Log = silent, most: int | None = None) -> None:
    """Two forwards are equal, a step of every training that is `asked` works, and every label is one.

    Nothing of `opened` changes. With `most` a step is tried on so many samples at most, where time matters more than
    whether the memory will do. Labels that were found to be in order are not looked at again as long as the data, the
    tasks and the code are the same: the user's cache folder keeps that. Raises `UserError` naming the task, the place
    in the job, the layer or the sample.
    """
    program, splits = opened.program, opened.splits
    log(f"trying the network, {'a training step and ' if asked else ''}all labels")
    samples = min(_SAMPLES, len(splits.calibration), most or _SAMPLES)
    check_repeatable(program, fetch(splits.calibration, range(samples)))
    after = [training.config for training in asked if training.teacher]
    taught = bool(after) and all(config.distill > 0 for config in after)
    labels, done, said = LabelCheck(program, opened.criteria, splits, taught), set[str](), dict[str, None]()
    for training in asked:
        if training.config.epochs == 0:
            continue
        if most is not None and training.config.batch_size > most:
            log(f"{training.where}: a training step is tried on {most} of {training.config.batch_size} samples")
            training = replace(training, config=training.config.model_copy(update={"batch_size": most}))
        alike = training.config.model_dump(include=set(TrainConfig.model_fields) - _OF_LATER_STEPS)
        key = json.dumps([alike, training.frozen_norms], default=str)
        if key not in done:
            found = check_first_step(
                program, splits, opened.criteria, training.config, where=training.where, seed=opened.job.seed,
                frozen_norms=training.frozen_norms, watch=labels.watch,
            )  # fmt: skip
            said |= dict.fromkeys(found)
            done.add(key)
    if said:
        outputs = ", ".join(map(repr, said))
        log(
            f"warning: in training mode the network also returns {outputs}, which no task names: nothing is learnt "
            "from it; for a loss on it add a task: [tasks.NAME] output = …, training_only = true; or list it in "
            "[model] ignore_outputs"
        )
    _check_labels(opened, labels, log)


_OF_LATER_STEPS = {
    "epochs",
    "final_lr",
    "weight_decay",
    "warmup",
    "ema",
    "distill",
    "distill_features",
    "checkpoint_seconds",
    "lr",
    "clip",
}


def check_passes(steps: Sequence[Step], context: Context) -> None:
    """Ask the first pass whether it can run on the original network, and later ones what they would do to it.

    Raises `UserError` with the place of the pass that cannot run, and for a budget that is out of reach.
    """
    for step in steps[:1]:
        try:
            pass_type(step.name)(step.config).requires(context.reference, context)
        except MtlcError as error:
            raise type(error)(f"{step.where}: {error}") from error
    if len(steps) < 2:
        return
    plans, budget = pass_plans(context.reference, steps, context.budget), context.budget
    if budget is not None:
        found = planned_budget(budget, context.reference, least_cost(steps, plans))
        if found.reachable is False and not found.met_already:
            raise UserError(beyond(found))


def _configs(config: BaseModel) -> Iterator[TrainConfig]:
    if isinstance(config, TrainConfig | RecoveryConfig) and config.epochs == 0:
        return
    if isinstance(config, TrainConfig):
        yield config
        return
    if isinstance(config, RecoveryConfig):
        # The first step is the same whatever the rate and the epochs are that are settled later.
        yield config.fixed(1, 1e-4)
        return
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from _configs(value)


def _check_labels(opened: Opened, labels: LabelCheck, log: Log) -> None:
    """Check all labels, on the way of the pass over the data that its identity may need."""
    opened.splits.identify(log, labels.watch)
    known = json.dumps([evaluation_hash(opened.program.tasks, opened.splits), labels.shapes()], sort_keys=True)
    try:
        path = cache_folder("labels") / f"{hashlib.sha256(known.encode()).hexdigest()[:32]}.json"
    except RuntimeError:  # a user without a home
        labels.rest(log)
        return
    if (counts := _known(path, opened)) is not None:
        labels.accept(counts, log)
        return
    labels.rest(log)
    try:
        write_json(path, {"checked": {name: len(getattr(opened.splits, name)) for name in SPLITS}, **labels.counts()})
    except (OSError, UserError):  # a cache that cannot be written costs time and nothing else
        log(f"{path.parent} cannot be written: the labels will be checked again the next time")


def _known(path: Path, opened: Opened) -> dict[str, Any] | None:
    """The `LabelCheck.counts` of an earlier check; None without one, and where it is not whole."""
    try:
        counts: dict[str, Any] = json.loads(path.read_text())
        for split in SPLITS:
            for task in opened.program.tasks:
                int(counts["labelled"][split][task.name])
            list(counts["keys"][split])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return counts
