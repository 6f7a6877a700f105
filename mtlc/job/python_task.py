"""Describes a task in Python, its loss and metric as names, functions, classes or objects: `mtlc.Task`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from mtlc.errors import UserError
from mtlc.live_objects import reference
from mtlc.tasks.task import TaskSpec


@dataclass(frozen=True)
class Task:
    """A task of the network: how it is scored, and how much it may lose.

    Args:
        loss: a name (``"cross_entropy"``), ``"module:callable"``, a function ``f(output, target)`` that gives a tensor
            of one number (the mean over the batch), a class such as ``torch.nn.MSELoss`` or an object of one.
        metric: a name (``"miou"``), ``"module:callable"``, a class derived from `mtlc.Metric`, a class or an object of
            torchmetrics, or a function ``f(output, target)``, which is asked of each sample alone (batch axis of 1)
            and averaged.
        max_drop: how much the metric may get worse: ``"1%"`` of it, or a number in its unit. None: no limit.
        output: the key of the task's tensor in the network's outputs, its position as a text, or ``""`` for a network
            that returns one tensor. By default the task's name; outputs without names are taken in order.
        target: the key of the labels in a sample. By default the task's name.
        weight: of the loss in training.
        ignore: the label that counts in neither loss nor metric.
        loss_args: keyword arguments of the loss; of a class, of its constructor.
        metric_args: keyword arguments of the metric's class.
        higher_is_better: for a metric that does not say so itself.
        unit: of a metric that does not say so itself, such as ``"m"``.
        training_output: the output's key in training mode, where it has another there.
        training_only: the output exists in training mode alone; such a task has no metric.
        postprocess: how the output becomes boxes, as ``[tasks.NAME] postprocess`` of a job.
    """

    loss: str | Callable[..., Any]
    metric: str | Callable[..., Any] | Any = None
    max_drop: str | float | None = None
    output: str | None = None
    target: str | None = None
    weight: float = 1.0
    ignore: int | None = None
    loss_args: Mapping[str, Any] = field(default_factory=dict)
    metric_args: Mapping[str, Any] = field(default_factory=dict)
    higher_is_better: bool | None = None
    unit: str = ""
    training_output: str | None = None
    training_only: bool = False
    postprocess: Mapping[str, Any] | None = None

    def section(self) -> dict[str, Any]:
        """The task as the table ``[tasks.NAME]`` of a job; objects in it are references."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        better, unit = values.pop("higher_is_better"), values.pop("unit")
        values["loss"] = self.loss if isinstance(self.loss, str) else reference(self.loss)
        values["metric"] = _metric(self.metric, better, unit)
        values |= {key: dict(values[key]) for key in ("loss_args", "metric_args")}
        return {key: value for key, value in values.items() if value is not None}


def _metric(given: Any, higher_is_better: bool | None, unit: str) -> str | None:
    from mtlc.tasks.foreign_criteria import ForeignMetric

    if given is None:
        return None
    if isinstance(given, str):
        if higher_is_better is not None or unit:
            raise UserError(f"metric = {given!r} says itself which way is better, and its unit: leave these out")
        return given
    if isinstance(given, type) and higher_is_better is None and not unit:
        return reference(given)
    return reference(ForeignMetric(given, higher_is_better, unit))


def task_sections(tasks: Any) -> dict[str, dict[str, Any]]:
    """``[tasks]`` of a job, of what the argument `tasks` gives. Raises `UserError` naming it and the task."""
    if not isinstance(tasks, Mapping) or not tasks:
        shown = "empty" if isinstance(tasks, Mapping) else f"a {type(tasks).__name__}"
        raise UserError(f'tasks is {shown}: give a dict, such as {{"depth": mtlc.Task("l1", "rmse")}}')
    found = {}
    for name, given in tasks.items():
        if isinstance(given, TaskSpec):
            found[str(name)] = _of_spec(given)
            continue
        if isinstance(given, tuple) and len(given) == 2:
            given = Task(*given)
        if not isinstance(given, Task):
            raise UserError(
                f"tasks[{name!r}] is a {type(given).__name__}: give mtlc.Task(loss, metric), such as "
                'mtlc.Task("cross_entropy", "miou", max_drop="1%")'
            )
        _callable(given.loss, f"tasks[{name!r}] loss")
        found[str(name)] = given.section()
    return found


def _of_spec(spec: TaskSpec) -> dict[str, Any]:
    values = {key: value for key, value in spec.to_dict().items() if key != "name" and value is not None}
    if spec.max_drop is not None:
        values["max_drop"] = str(spec.max_drop) if spec.max_drop.relative else spec.max_drop.value
    if spec.training_only:
        del values["metric"]
    return values


def _callable(given: Any, where: str) -> None:
    if not isinstance(given, str) and not callable(given):
        raise UserError(f"{where} = {given!r}: give a name, a function f(output, target), a class or an object of one")
