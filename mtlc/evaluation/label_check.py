"""Looks at every label of the data before hours of work depend on them, and names the sample of the first bad one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria, no_labels
from mtlc.evaluation.splits import Batch, Splits, fetch
from mtlc.log import Log, silent
from mtlc.program.program import Program
from mtlc.tasks.labels import (
    IGNORED,
    check_binary,
    check_classes,
    check_finite,
    check_normals,
    check_range,
    check_same,
    counted,
    ignored_class,
    valid_depth,
    valid_normals,
)
from mtlc.tasks.task import TaskSpec

Rule = Callable[[Tensor, Tensor, TaskSpec], None]

_SIZES = 32
"""Of so many sizes of input the network's output is worked out, to hold labels against it."""
_FALSE_ALARMS = 32
_ELEMENTS = 1 << 24
"""So many elements of outputs at a time are given to a loss that is not mtlc's."""
_AT_ONCE = 32
_PATIENCE = 5.0  # seconds of reading after which a line says how it goes


def _ignored(task: TaskSpec) -> int:
    """The label of a binary task that does not count."""
    return IGNORED if task.ignore is None else task.ignore


def _classes(output: Tensor, target: Tensor, task: TaskSpec) -> None:
    check_classes(output, target)
    ignored = ignored_class(output.shape[1], task.ignore)
    check_range(target.long()[counted(target, ignored)], output.shape[1], ignored)


def _shares(output: Tensor, target: Tensor, task: TaskSpec) -> None:
    check_same(output, target)
    check_binary(target, _ignored(task))


def _numbers(output: Tensor, target: Tensor, task: TaskSpec) -> None:
    check_same(output, target)
    check_finite(target)


def _depths(output: Tensor, target: Tensor, task: TaskSpec) -> None:
    check_same(output, target)


def _directions(output: Tensor, target: Tensor, task: TaskSpec) -> None:
    check_normals(output, target)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("cross_entropy", "miou", "accuracy"), _classes),
    **dict.fromkeys(("balanced_bce", "edge_bce", "max_jaccard", "odsf"), _shares),
    **dict.fromkeys(("mse",), _numbers),
    **dict.fromkeys(("l1", "rmse"), _depths),
    **dict.fromkeys(("normals_l1", "mean_angle"), _directions),
}
"""By loss and metric of mtlc, what its labels must be like. What others take only they can say."""


class LabelCheck:
    """Holds the labels of the splits against the tasks' losses and metrics.

    The network's output for one sample stands for those of all samples of its size: whether a label's shape and values
    fit does not hang on what exactly the network says. A label that does not fit is tried again with its own output.
    """

    def __init__(self, program: Program, criteria: Criteria, splits: Splits) -> None:
        self._program, self._criteria, self._splits = program, criteria, splits
        self._names: dict[int, str] = {}
        for name in ("train", "calibration", "validation"):
            self._names.setdefault(id(getattr(splits, name)), name)
        self._seen: dict[str, set[int]] = {name: set() for name in self._names.values()}
        self._counts = {(name, task.name): [0, 0] for name in self._seen for task in criteria.tasks}
        self._outputs: dict[tuple[torch.Size, ...], dict[str, Tensor] | None] = {}
        self._alarms = dict.fromkeys((task.name for task in criteria.tasks), 0)
        self._expected(fetch(splits.calibration, [0]))  # on which the network is known to run

    def shapes(self) -> dict[str, list[int]]:
        """The shape of the network's output for one sample of the calibration split, by task, without the batch."""
        outputs = next(iter(self._outputs.values())) or {}
        return {name: list(output.shape[1:]) for name, output in outputs.items()}

    def watch(self, data: Any, indices: Sequence[int], batch: Batch) -> None:
        """Check a batch that was read from one of the splits, for whatever purpose; others are left alone.

        Raises `UserError` naming the sample.
        """
        name = self._names.get(id(data))
        new = [] if name is None else [row for row, index in enumerate(indices) if index not in self._seen[name]]
        if name is None or not new:
            return
        self._check(name, [indices[row] for row in new], {key: value[new] for key, value in batch.items()})
        self._seen[name].update(indices)

    def rest(self, log: Log = silent) -> None:
        """Read and check all samples that were not watched, then what can only be said of a whole split.

        Raises `UserError` naming the sample, or the split that has no label for a task.
        """
        for name, seen in self._seen.items():
            data = getattr(self._splits, name)
            left = [index for index in range(len(data)) if index not in seen]
            size = _AT_ONCE if hasattr(data, "batch") else 1
            said = time.monotonic()
            for start in range(0, len(left), size):
                indices = left[start : start + size]
                self.watch(data, indices, fetch(data, indices))
                if time.monotonic() - said > _PATIENCE:
                    log(f"[data] {name}: the labels of {len(seen)} of {len(data)} samples checked")
                    said = time.monotonic()
            if seen:
                self._whole(name)

    def _whole(self, name: str) -> None:
        for task in self._criteria.tasks:
            valid, positive = self._counts[name, task.name]
            if not valid:
                raise UserError(
                    f"[data] {name}: no label of task {task.name!r} counts, in any of its samples; "
                    f"look at what {task.target_key!r} holds"
                )
            if name == "train" and not positive and _shares in _rules(task):
                raise UserError(
                    f"[data] train: no label of task {task.name!r} is positive, and {_ignored(task)} does not count; "
                    f"if {task.target_key!r} holds masks of 0 and 255, divide them by 255"
                )

    def _check(self, name: str, indices: Sequence[int], batch: Batch) -> None:
        for task in self._criteria.tasks:
            if task.target_key not in batch:
                raise no_labels(task, batch)
            if self._fault(task, batch, self._expected(batch)) is not None:
                for row, index in enumerate(indices):
                    one = {key: value[row : row + 1] for key, value in batch.items()}
                    fault = self._fault(task, one, self._expected(one))
                    if fault is not None and self._is_its_own(task, one):
                        raise UserError(f"[data] {name} sample {index}: {fault}")
            counts = self._counts[name, task.name]
            valid, positive = self._count(task, batch)
            counts[0] += valid
            counts[1] += positive

    def _is_its_own(self, task: TaskSpec, one: Batch) -> bool:
        """Whether a label does not fit the network's output for its own sample either."""
        if self._fault(task, one, self._run(one)) is not None:
            return True
        self._alarms[task.name] += 1
        return False

    def _fault(self, task: TaskSpec, batch: Batch, outputs: dict[str, Tensor] | None) -> str | None:
        """What is wrong with the labels of a batch, if anything is."""
        target = batch[task.target_key]
        output = self._stand_in(task, target) if outputs is None else outputs[task.name]
        output = output.expand(len(target), *output.shape[1:]) if len(output) == 1 else output
        for what, name in (("loss", task.loss), ("metric", task.metric)):
            if name in _RULES:
                try:
                    _RULES[name](output, target, task)
                except UserError as error:
                    return f"[tasks.{task.name}] {what} = {name!r}: {error}"
        if (
            outputs is None
            or task.loss in _RULES
            or self._alarms[task.name] >= _FALSE_ALARMS
            or not bool(output[:1].isfinite().all())
        ):
            return None  # an output that is no number is the network's fault, or the input's
        return self._fault_of_loss(task, batch, output)

    def _fault_of_loss(self, task: TaskSpec, batch: Batch, output: Tensor) -> str | None:
        """What a loss that is not mtlc's says of the labels."""
        size = max(1, _ELEMENTS // max(1, output[0].numel()))
        for start in range(0, len(output), size):
            part = {key: value[start : start + size] for key, value in batch.items()}
            try:
                loss = float(self._criteria.loss(task, output[start : start + size], part))
            except UserError as error:
                return str(error)
            if not math.isfinite(loss):
                return f"[tasks.{task.name}] loss = {task.loss!r} is {loss}; look for NaN in the label"
        return None

    def _expected(self, batch: Batch) -> dict[str, Tensor] | None:
        """The outputs (1, ...) that stand for those of a batch; None where there would be too many to work out."""
        key = tuple(batch[name].shape[1:] for name in self._program.inputs)
        if key not in self._outputs:
            if len(self._outputs) >= _SIZES:
                return None
            self._outputs[key] = self._run(batch)
        return self._outputs[key]

    def _stand_in(self, task: TaskSpec, target: Tensor) -> Tensor:
        """An output of the shape that fits a label, where the right one was not worked out: its values can be told."""
        known = next(iter(self._outputs.values()))
        assert known is not None
        channels = known[task.name].shape[1:2]
        shape = (len(target), *channels, *target.shape[1:]) if _classes in _rules(task) else target.shape
        return known[task.name].new_zeros(1).expand(shape)

    def _run(self, batch: Batch) -> dict[str, Tensor]:
        with torch.inference_mode():
            return self._program.outputs_on_data({name: batch[name][:1] for name in self._program.inputs})

    def _count(self, task: TaskSpec, batch: Batch) -> tuple[int, int]:
        """How many elements of the labels count, and how many of these are positive."""
        target, rules = batch[task.target_key], _rules(task)
        if _shares in rules:
            valid = counted(target, _ignored(task))
            return int(valid.sum()), int(((target > 0.5) & valid).sum())
        if _classes in rules:
            outputs = self._expected(batch)
            classes = 0 if outputs is None else outputs[task.name].shape[1]
            valid = counted(target, ignored_class(classes, task.ignore))
        elif _depths in rules:
            valid = valid_depth(target)
        elif _directions in rules:
            valid = valid_normals(target)
        else:
            return target.numel(), 0
        return int(valid.sum()), 0


def _rules(task: TaskSpec) -> set[Rule]:
    return {_RULES[name] for name in (task.loss, task.metric) if name in _RULES}
