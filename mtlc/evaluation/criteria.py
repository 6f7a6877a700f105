"""Finds the loss and the metric of each task, and says which way each metric is better."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from mtlc.errors import UserError, one_line
from mtlc.evaluation.splits import Batch
from mtlc.tasks.losses import resolve_loss
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

    def restricted(self, names: Iterable[str]) -> Criteria:
        """The criteria of some of the tasks, in their order here."""
        kept = set(names)
        return (
            self if kept.issuperset(t.name for t in self.tasks) else Criteria(t for t in self.tasks if t.name in kept)
        )

    def new_metrics(self) -> dict[str, Any]:
        """Fresh metric accumulators by task."""
        made = {}
        for task in self.tasks:
            try:
                settings = _settings(task, "metric", metric_maker(task.metric), task.metric_args)
                made[task.name] = resolve_metric(task.metric, **settings)
            except UserError as error:
                raise UserError(f"[tasks.{task.name}] {error}") from None
        return made

    def loss(self, task: TaskSpec, output: Tensor, batch: Batch) -> Tensor:
        """The task's mean loss over the batch. Shapes that do not fit are an error that names the task."""
        if task.target_key not in batch:
            raise no_labels(task, batch)
        where = f"[tasks.{task.name}] loss = {task.loss!r}"
        try:
            loss = self._losses[task.name](output, batch[task.target_key], **self._loss_args[task.name])
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        except Exception as error:  # a loss may be the user's
            shapes = f"output {tuple(output.shape)}, target {tuple(batch[task.target_key].shape)}"
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
    """The keyword arguments of a task's loss or metric, the job's `ignore` among them.

    Raises `UserError` where it takes none: the labels would be left out of one of the two only.
    """
    if task.ignore is None:
        return dict(given)
    if given.get("ignore_index", task.ignore) != task.ignore:
        raise UserError(
            f"ignore = {task.ignore}, but {what}_args has ignore_index = {given['ignore_index']}: leave one out"
        )
    try:
        known = inspect.signature(function).parameters.values()
        takes = any(one.name == "ignore_index" or one.kind is one.VAR_KEYWORD for one in known)
    except (TypeError, ValueError):  # written in C: it says itself what it does not take
        takes = True
    if not takes:
        name = task.loss if what == "loss" else task.metric
        raise UserError(
            f"ignore = {task.ignore}: {what} {name!r} takes no ignore_index, so the value would count in it; "
            "leave ignore out, or give it that argument"
        )
    return {**given, "ignore_index": task.ignore}


def no_labels(task: TaskSpec, batch: Batch) -> UserError:
    return UserError(f"[tasks.{task.name}] the data has no {task.target_key!r}; its keys: {', '.join(sorted(batch))}")
