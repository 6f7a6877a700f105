"""Per-task losses and metrics of a network on a split."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtlc.data import Batch, batches
from mtlc.errors import UserError
from mtlc.factory import one_line
from mtlc.labels import IGNORED
from mtlc.losses import resolve_loss
from mtlc.metrics import resolve_metric
from mtlc.program import Program
from mtlc.tasks import TaskSpec


@dataclass(frozen=True)
class Evaluation:
    """Losses and metrics by task; `details` holds what a metric tells besides (shares under 11.25°, for instance)."""

    losses: dict[str, float]
    metrics: dict[str, float]
    details: dict[str, dict[str, float]]


class Criteria:
    """The losses and metrics of a list of tasks, resolved once."""

    def __init__(self, tasks: Iterable[TaskSpec]) -> None:
        self.tasks = tuple(tasks)
        self._losses = {}
        for task in self.tasks:
            try:
                self._losses[task.name] = resolve_loss(task.loss)
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
                made[task.name] = resolve_metric(task.metric, **task.metric_args)
            except UserError as error:
                raise UserError(f"[tasks.{task.name}] {error}") from None
        return made

    def loss(self, task: TaskSpec, output: Tensor, batch: Batch) -> Tensor:
        """The task's mean loss over the batch. Shapes that do not fit are an error that names the task."""
        if task.target_key not in batch:
            raise _no_labels(task, batch)
        where = f"[tasks.{task.name}] loss = {task.loss!r}"
        try:
            loss = self._losses[task.name](output, batch[task.target_key], **task.loss_args)
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


class MetricTotals:
    """The metrics of `tasks` (None: all) of `criteria`, fed batch by batch."""

    def __init__(self, criteria: Criteria, tasks: Collection[str] | None = None) -> None:
        self._criteria = criteria
        self._tasks = [task for task in criteria.tasks if tasks is None or task.name in tasks]
        self._metrics = criteria.new_metrics()

    def update(self, outputs: Mapping[str, Tensor], batch: Batch) -> None:
        """Count the outputs by task of one batch with its labels. Raises `UserError` naming the task that does not fit."""
        for task in self._tasks:
            if task.target_key not in batch:
                raise _no_labels(task, batch)
            with self._criteria.metric_errors(task):
                self._metrics[task.name].update(outputs[task.name], batch[task.target_key])

    def values(self) -> dict[str, float]:
        """Each task's metric of all that was counted; NaN if that is nothing."""
        found = {}
        for task in self._tasks:
            with self._criteria.metric_errors(task):
                found[task.name] = float(self._metrics[task.name].compute())
        return found

    def details(self) -> dict[str, dict[str, float]]:
        """What else the metrics tell, by task."""
        found = {}
        for task in self._tasks:
            with self._criteria.metric_errors(task):
                found[task.name] = dict(self._metrics[task.name].details())
        return found


def _no_labels(task: TaskSpec, batch: Batch) -> UserError:
    return UserError(f"[tasks.{task.name}] the data has no {task.target_key!r}; its keys: {', '.join(sorted(batch))}")


def evaluate(
    run: Program | Callable[[Batch], Mapping[str, Tensor]],
    criteria: Criteria,
    dataset: Any,
    batch_size: int = 64,
    limit: int | None = None,
) -> Evaluation:
    """Losses (batch-size-weighted means) and metrics over a split, in eval mode without gradients.

    Raises `UserError` naming the task whose loss is not a number.
    """
    forward = run.outputs_on_data if isinstance(run, Program) else run
    training = run.module.training if isinstance(run, Program) else False
    if isinstance(run, Program):
        run.module.eval()
    metrics, totals, count = MetricTotals(criteria), dict.fromkeys((t.name for t in criteria.tasks), 0.0), 0
    try:
        with torch.inference_mode():
            for batch in batches(dataset, batch_size, limit):
                outputs = forward(batch)
                size = len(next(iter(batch.values())))
                for name, loss in criteria.losses(outputs, batch).items():
                    totals[name] += float(loss) * size
                metrics.update(outputs, batch)
                count += size
    finally:
        if isinstance(run, Program):
            run.module.train(training)
    losses = {name: total / count for name, total in totals.items()}
    for name, value in losses.items():
        if not math.isfinite(value):
            raise UserError(
                f"task {name!r}: its loss on the data is {value}; look for NaN in the labels or the weights"
            )
    return Evaluation(losses, metrics.values(), metrics.details())


def constant_metrics(criteria: Criteria, seen: Any, dataset: Any, batch_size: int = 64) -> dict[str, float | None]:
    """Metrics on `dataset` of the best predictor that ignores its input: what not learning looks like.

    Class frequencies, the mean of valid values or the mean direction of `seen`; for probabilities the better of the base
    rate and "everywhere". Per channel, not per pixel. None for a task whose metric says nothing of its kind.
    """
    best: dict[str, float | None] = {}
    for task in criteria.tasks:
        labels = torch.cat([batch[task.target_key] for batch in batches(seen, batch_size)])
        scores = []
        for constant in _constants(criteria.kinds[task.name], labels):
            metric = criteria.new_metrics()[task.name]
            for batch in batches(dataset, batch_size):
                target = batch[task.target_key]
                space = target.shape[1:] if target.dtype == torch.int64 else target.shape[2:]
                shape = (len(target), len(constant), *space)
                metric.update(constant.view(1, -1, *[1] * len(space)).expand(shape), target)
            scores.append(float(metric.compute()))
        pick = max if criteria.higher_is_better[task.name] else min
        best[task.name] = pick(scores) if scores else None
    return best


def _constants(kind: str, labels: Tensor) -> list[Tensor]:
    """Candidates, one value per channel each, in the terms of a network's output (class scores, values, logits)."""
    if kind == "labels" and labels.dtype == torch.int64:
        counts = torch.bincount(labels[labels != IGNORED].flatten())
        return [(counts.double() / counts.sum()).clamp_min(1e-12).log().float()]
    if labels.ndim < 2 or not labels.is_floating_point():
        return []
    channels = labels.transpose(0, 1).flatten(1).double()
    if kind == "probability":
        rate = torch.logit(channels.mean(1), eps=1e-6).float()
        return [rate, torch.full_like(rate, 20.0)]
    valid = (channels != 0).any(0)  # 0 marks a pixel without depth or direction
    return [channels[:, valid].mean(1).float()]
