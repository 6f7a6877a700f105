"""Evaluates a network on the validation split, and refuses metrics that are no numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from mtlc.errors import UserError, VerificationError
from mtlc.evaluation.constant_predictor import constant_metrics
from mtlc.evaluation.evaluate import Evaluation, evaluate
from mtlc.evaluation.splits import fetch
from mtlc.log import Log
from mtlc.program.program import Program
from mtlc.results.tasks import beats_constant, unlearned_words
from mtlc.workflows.opened_job import Opened


def evaluated(opened: Opened, program: Program, who: str, log: Log) -> Evaluation:
    """Losses and metrics of `program`, which is the "original" or the "compressed" network, for the tasks that it has.

    Raises `UserError` where the original network has a metric that is no number, `VerificationError` where the
    compressed one has: a limit compared with NaN would hold or fail by accident.
    """
    log(f"evaluating the {who} network on the validation split")
    evaluation = evaluate(program, opened.criteria.restricted(program.task_names), opened.splits.validation, keep=True)
    for task, value in evaluation.metrics.items():
        if math.isfinite(value):
            continue
        message = f"task {task!r}: the {who} network's metric on the validation split is {value}"
        if who == "original":
            raise UserError(f"{message}; look for a split without valid labels, or weights that are not trained")
        raise VerificationError(message)
    return evaluation


def constants_of(opened: Opened, limit: int | None = None) -> dict[str, float | None]:
    """By task, the metric of the best predictor that answers every sample alike, on the validation split: None where
    the metric says nothing of it. At most `limit` samples are looked at.
    """
    splits = opened.splits
    with torch.inference_mode():
        outputs = opened.program.outputs(fetch(splits.calibration, [0]))
    channels = {name: output.shape[1] for name, output in outputs.items() if output.ndim > 1}
    return constant_metrics(opened.criteria, splits.calibration, splits.validation, channels=channels, limit=limit)


def not_learned(opened: Opened, metrics: Mapping[str, float], constants: Mapping[str, float | None]) -> str | None:
    """That the original network is no better than a constant predictor at some tasks, in a line; None if it is."""
    better, found = opened.criteria.higher_is_better, []
    for task in opened.program.tasks:
        value, constant = metrics[task.name], constants[task.name]
        if not beats_constant(value, constant, better[task.name]):
            found.append((task.name, task.metric, opened.criteria.units[task.name], value, constant))
    return f"{unlearned_words('original', found)}; what is compressed has to be trained first" if found else None
