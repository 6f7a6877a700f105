"""Finds the loss and the metric of each task, and says which way each metric is better."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from mtlc.errors import UserError, one_line
from mtlc.evaluation.labelled import LossOrMetric, labelled_rows
from mtlc.evaluation.splits import Batch
from mtlc.tasks.losses import resolve_loss
from mtlc.tasks.metric import can_be_resampled
from mtlc.tasks.metrics import metric_maker, resolve_metric
from mtlc.tasks.task import TaskSpec


class Criteria:
    """The losses and metrics of a list of tasks, resolved once."""

    def __init__(self, tasks: Iterable[TaskSpec]) -> None:
        self.tasks = tuple(tasks)
        self._losses: dict[str, Callable[..., Any]] = {}
        self._loss_args: dict[str, dict[str, Any]] = {}
        for task in self.tasks:
            try:
                self._losses[task.name] = loss = resolve_loss(task.loss)
                self._loss_args[task.name] = _settings(task, "loss", loss, task.loss_args)
            except UserError as error:
                raise UserError(f"[tasks.{task.name}] {error}") from None
        metrics = self.new_metrics()
        self.higher_is_better = {name: bool(metric.higher_is_better) for name, metric in metrics.items()}
        self.units = {name: str(metric.unit) for name, metric in metrics.items()}
        self.kinds = {name: str(metric.kind) for name, metric in metrics.items()}
        for task in self.tasks:
            asked = task.max_drop is not None and task.max_drop.confidence is not None
            if asked and not task.training_only and not can_be_resampled(metrics[task.name]):
                raise UserError(
                    f"[tasks.{task.name}] max_drop.confidence: metric {task.metric!r} does not say what each sample "
                    "adds to it (Metric.sums), so nothing is known of its chances; leave the confidence out"
                )

    def restricted(self, names: Iterable[str]) -> Criteria:
        """The criteria of some of the tasks, in their order here."""
        kept = set(names)
        return (
            self if kept.issuperset(t.name for t in self.tasks) else Criteria(t for t in self.tasks if t.name in kept)
        )

    def new_metrics(self) -> dict[str, Any]:
        """Fresh metric accumulators by task; none for one that is only trained with."""
        return {task.name: self.new_metric(task) for task in self.tasks if not task.training_only}

    def new_metric(self, task: TaskSpec) -> Any:
        """A fresh metric accumulator of one task."""
        try:
            settings = _settings(task, "metric", metric_maker(task.metric), task.metric_args)
            return resolve_metric(task.metric, **settings)
        except UserError as error:
            raise UserError(f"[tasks.{task.name}] {error}") from None

    def loss(self, task: TaskSpec, output: Tensor, batch: Batch) -> Tensor:
        """The task's mean loss over the batch. Shapes that do not fit are an error that names the task.

        Samples without a label are left out. Where none has one it is 0 and hangs on no weight, so that an optimiser
        leaves alone what only this task trains.
        """
        found = self.labelled(task, output, batch, "loss")
        return output.new_zeros(()) if found is None else self.loss_of(task, *found)

    def labelled(self, task: TaskSpec, output: Tensor, batch: Batch, of: LossOrMetric) -> tuple[Tensor, Tensor] | None:
        """The outputs and labels of those samples of a batch that have a label for the task's loss or metric.

        As they are where all have one; None where none has.
        """
        if task.target_key not in batch:
            return None
        target = batch[task.target_key]
        rows = labelled_rows(task, output, batch, of)
        if rows is None:
            return output, target
        return (output[rows.to(output.device)], target[rows.to(target.device)]) if bool(rows.any()) else None

    def loss_of(self, task: TaskSpec, output: Tensor, target: Tensor) -> Tensor:
        """The task's mean loss of outputs and their labels, none of which is missing."""
        where = f"[tasks.{task.name}] loss = {task.loss!r}"
        try:
            loss = self._losses[task.name](output, target, **self._loss_args[task.name])
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        except Exception as error:  # a loss may be the user's
            shapes = f"output {tuple(output.shape)}, target {tuple(target.shape)}"
            raise UserError(f"{where} does not fit: {shapes}: {one_line(error)}") from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            what = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise UserError(f"{where} gives {what}; it must give a tensor of one number, the mean over the batch")
        return loss

    @contextmanager
    def metric_errors(self, task: TaskSpec) -> Iterator[None]:
        """What a metric raises in the block becomes one line that names the task."""
        where = f"[tasks.{task.name}] metric = {task.metric!r}"
        try:
            yield
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        except Exception as error:  # a metric may be the user's
            raise UserError(f"{where} raised {one_line(error)}") from error

    def losses(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        return {task.name: self.loss(task, outputs[task.name], batch) for task in self.tasks}


def _settings(task: TaskSpec, what: str, function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a task's loss or metric, the job's `ignore` and `postprocess` among them.

    Raises `UserError` where it takes no `ignore`: the labels would be left out of one of the two only. What a device
    does with an output is nothing to a loss that does not ask for it.
    """
    if task.postprocess is not None and _takes(function, "postprocess", unknown=False):
        given = {**given, "postprocess": task.postprocess}
    if task.ignore is None:
        return dict(given)
    if given.get("ignore_index", task.ignore) != task.ignore:
        raise UserError(
            f"ignore = {task.ignore}, but {what}_args has ignore_index = {given['ignore_index']}: leave one out"
        )
    if not _takes(function, "ignore_index", unknown=True):
        name = task.loss if what == "loss" else task.metric
        raise UserError(
            f"ignore = {task.ignore}: {what} {name!r} takes no ignore_index, so the value would count in it; "
            "leave ignore out, or give it that argument"
        )
    return {**given, "ignore_index": task.ignore}


def _takes(function: Callable[..., Any], name: str, unknown: bool) -> bool:
    """Whether a function has a keyword argument; `unknown` for one written in C, which says itself what it takes."""
    try:
        known = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return unknown
    return any(one.name == name or (one.kind is one.VAR_KEYWORD and unknown) for one in known)


def none_labelled(task: TaskSpec, samples: str) -> UserError:
    """That none of some samples has a label of a task, though others may."""
    return UserError(
        f"task {task.name!r}: none of {samples} has a label that counts; look at more samples, or mix them "
        "(mtlc.evaluation.mixed)"
    )


def no_labels(task: TaskSpec, keys: Iterable[str], where: str = "the data") -> UserError:
    """That no sample of `where` has the labels of a task; `keys` are those that samples have."""
    known = sorted(key for key in keys if ":" not in key)  # what says which rows are real is no key of a sample
    return UserError(f"[tasks.{task.name}] {where} has no {task.target_key!r}; its keys: {', '.join(known)}")
