"""Evaluates a network on the validation split, and refuses metrics that are no numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mtlc.errors import UserError, VerificationError
from mtlc.evaluation.evaluate import Evaluation, evaluate
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
    evaluation = evaluate(program, opened.criteria.restricted(program.task_names), opened.splits.validation)
    for task, value in evaluation.metrics.items():
        if math.isfinite(value):
            continue
        message = f"task {task!r}: the {who} network's metric on the validation split is {value}"
        if who == "original":
            raise UserError(f"{message}; look for a split without valid labels, or weights that are not trained")
        raise VerificationError(message)
    return evaluation


def not_learned(opened: Opened, metrics: Mapping[str, float], constants: Mapping[str, float | None]) -> str | None:
    """That the original network is no better than a constant predictor at some tasks, in a line; None if it is."""
    better, found = opened.criteria.higher_is_better, []
    for task in opened.program.tasks:
        value, constant = metrics[task.name], constants[task.name]
        if not beats_constant(value, constant, better[task.name]):
            found.append((task.name, task.metric, opened.criteria.units[task.name], value, constant))
    return f"{unlearned_words('original', found)}; what is compressed has to be trained first" if found else None
