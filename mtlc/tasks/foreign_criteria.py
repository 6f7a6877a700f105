"""Makes a loss or a metric of what a user has: a class, an object of torch's or torchmetrics', a function.

A loss is called as ``loss(output, target, **settings)``; a class is made with the settings first, as
``torch.nn.MSELoss(reduction="mean")``. A metric of others has ``update``, ``compute`` and ``reset``, as those of
torchmetrics do; a function ``f(output, target)`` is asked of each sample, and its values are averaged.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mtlc.errors import UserError
from mtlc.tasks.labels import check_same
from mtlc.tasks.metric import Metric

_ELEMENTWISE = (nn.L1Loss, nn.MSELoss, nn.SmoothL1Loss, nn.HuberLoss)
"""Losses of torch that broadcast what differs in shape, and then mean something else."""
_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)
"""Losses of torch that take class numbers of one type only."""


def as_loss(given: Callable[..., Any]) -> Callable[..., Any]:
    """The loss function of a class or an object; any other callable is one."""
    if isinstance(given, type | nn.Module):
        return ForeignLoss(given)
    return given


class ForeignLoss:
    """A loss that is a class, made anew with the settings of each call, or an object."""

    def __init__(self, given: Any) -> None:
        self._given = given
        if isinstance(given, type):
            with contextlib.suppress(TypeError, ValueError):
                self.__signature__ = inspect.signature(given)  # what settings there are is asked of this

    def __call__(self, output: Tensor, target: Tensor, **settings: Any) -> Any:
        """The mean loss of a batch. Raises `UserError` for shapes that only broadcasting would make fit."""
        loss = self._given
        if isinstance(loss, type):
            loss, settings = loss(**settings), {}
        if isinstance(loss, nn.Module):
            loss = loss.to(output.device)  # class weights are buffers
        if isinstance(loss, _ELEMENTWISE):
            check_same(output, target)
        if isinstance(loss, _CLASSES) and not target.is_floating_point():
            target = target.long()
        return loss(output, target, **settings)


def as_metric(made: Any, name: str, higher_is_better: bool | None = None, unit: str = "") -> Any:
    """A metric of mtlc's kind of an object or a function that is none, fresh; one that is, as it is.

    `higher_is_better` and `unit` are for what does not say so itself. Raises `UserError` where nobody says which way
    is better.
    """
    if isinstance(made, Metric) or all(hasattr(made, one) for one in ("unit", "kind", "details")):
        return made
    if not (hasattr(made, "update") and hasattr(made, "compute")) and not callable(made):
        raise UserError(
            f"metric = {name!r} is a {type(made).__name__}: give a metric with update and compute, or a function "
            "f(output, target)"
        )
    if hasattr(made, "keys") and hasattr(made, "items"):
        several = ", ".join(map(str, list(made.keys())[:4]))
        raise UserError(
            f"metric = {name!r} holds several metrics ({several}), and a task has one, which its limit refers to: give "
            "one of them"
        )
    better = getattr(made, "higher_is_better", None) if higher_is_better is None else higher_is_better
    if better is None:
        raise UserError(
            f"metric = {name!r} does not say whether more is better: give it an attribute higher_is_better, "
            "or write mtlc.Task(…, higher_is_better=True)"
        )
    kind = _Accumulated if hasattr(made, "update") and hasattr(made, "compute") else _Averaged
    return kind(made, bool(better), unit or str(getattr(made, "unit", "") or ""))


def as_metric_maker(given: Callable[..., Any]) -> Callable[..., Any]:
    """What makes a metric: a class or a function that does, or what `ForeignMetric` makes of any other callable."""
    if isinstance(given, type | ForeignMetric):
        return given
    return ForeignMetric(given) if not inspect.isfunction(given) or _takes_two(given) else given


def _takes_two(function: Callable[..., Any]) -> bool:
    """Whether a function cannot be called without two arguments: an output and a target."""
    parameters = inspect.signature(function).parameters.values()
    return sum(one.default is one.empty and one.kind in _POSITIONAL for one in parameters) == 2


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class ForeignMetric:
    """What makes a metric of one of others: a class, an object or a function, with what it does not say itself."""

    def __init__(self, given: Any, higher_is_better: bool | None = None, unit: str = "") -> None:
        self.given, self.higher_is_better, self.unit = given, higher_is_better, unit
        if isinstance(given, type):
            with contextlib.suppress(TypeError, ValueError):
                self.__signature__ = inspect.signature(given)

    def __call__(self, **settings: Any) -> Any:
        """A fresh metric. Raises `TypeError` where it takes no such settings."""
        if isinstance(self.given, type):
            made = self.given(**settings)
        elif settings:
            raise TypeError("it is no class, so it takes none")
        else:
            made = self.given if inspect.isfunction(self.given) else copy.deepcopy(self.given)
            if hasattr(made, "reset"):
                made.reset()
        name = getattr(self.given, "__name__", type(self.given).__name__)
        return as_metric(made, name, self.higher_is_better, self.unit)


class _Foreign(Metric):
    kind = "unknown"

    def __init__(self, given: Any, higher_is_better: bool, unit: str) -> None:
        self.higher_is_better, self.unit = higher_is_better, unit  # type: ignore[misc]
        self._given = given


class _Accumulated(_Foreign):
    """A metric with ``update`` and ``compute``, as those of torchmetrics."""

    def __init__(self, given: Any, higher_is_better: bool, unit: str) -> None:
        super().__init__(given, higher_is_better, unit)
        self._fed = False
        if isinstance(given, nn.Module):
            given.cpu()  # the states of one that was made for a GPU; outputs come to the processor too
        if hasattr(given, "sync_on_compute"):
            given.sync_on_compute = False  # one process asks: the others of a training would be waited for in vain

    def update(self, output: Tensor, target: Tensor) -> None:
        """Count one batch."""
        self._fed = True
        self._given.update(output.detach().cpu(), target.detach().cpu())

    def compute(self) -> float:
        """What the metric makes of all that was counted; NaN if that is nothing."""
        return _number(self._given.compute()) if self._fed else math.nan


class _Averaged(_Foreign):
    """A function of one sample's output and target, each with a batch axis of one; the mean over samples."""

    def __init__(self, given: Any, higher_is_better: bool, unit: str) -> None:
        super().__init__(given, higher_is_better, unit)
        self._sum, self._count = 0.0, 0

    def update(self, output: Tensor, target: Tensor) -> None:
        """Ask the function of each sample, so that the mean does not depend on how batches were cut."""
        if len(output) != len(target):
            raise UserError(f"output {tuple(output.shape)} and target {tuple(target.shape)} are of other lengths")
        for row in range(len(output)):
            self._sum += _number(self._given(output[row : row + 1], target[row : row + 1]))
            self._count += 1

    def compute(self) -> float:
        """The mean over the samples; NaN of none."""
        return self._sum / self._count if self._count else math.nan


def _number(value: Any) -> float:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise UserError(f"a metric must give one number, it gave a tensor {tuple(value.shape)}")
        return float(value.item())
    with torch.no_grad():
        return float(value)
