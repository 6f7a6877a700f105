"""Looks at every label of the data before hours of work depend on them, and names the sample of the first bad one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlc.errors import UserError
from mtlc.evaluation.collation import check_inputs, has_label
from mtlc.evaluation.criteria import Criteria, no_labels
from mtlc.evaluation.labelled import counting, labelled_rows
from mtlc.evaluation.splits import Batch, Splits, fetch
from mtlc.log import Log, silent, tracked
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
)
from mtlc.tasks.simota import check_boxes, detection_of
from mtlc.tasks.task import TaskSpec

Rule = Callable[[Tensor, Tensor, TaskSpec], None]

_SIZES = 32
"""Of so many sizes of input the network's output is worked out, to hold labels against it."""
_FALSE_ALARMS = 32
_ELEMENTS = 1 << 24
"""So many elements of outputs at a time are given to a loss that is not mtlc's."""
SPLITS = ("train", "calibration", "validation")
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


def _boxes(output: Tensor, target: Tensor, task: TaskSpec) -> None:
    check_boxes(output, target, detection_of(task.postprocess), task.ignore)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("cross_entropy", "miou", "accuracy"), _classes),
    **dict.fromkeys(("balanced_bce", "edge_bce", "max_jaccard", "odsf"), _shares),
    **dict.fromkeys(("mse",), _numbers),
    **dict.fromkeys(("l1", "rmse"), _depths),
    **dict.fromkeys(("normals_l1", "mean_angle"), _directions),
    **dict.fromkeys(("simota", "map", "map_50"), _boxes),
}
"""By loss and metric of mtlc, what its labels must be like. What others take only they can say."""


class LabelCheck:
    """Holds the labels of the splits against the tasks' losses and metrics, and counts the samples that have one.

    A split in which no sample has a label of a task is refused; the train split is not where its task is `taught`: by
    the outputs of the uncompressed network, in every training that is asked for.

    The network's output for one sample stands for those of all samples of its size: whether a label's shape and values
    fit does not hang on what exactly the network says. A label that does not fit is tried again with its own output.
    """

    def __init__(self, program: Program, criteria: Criteria, splits: Splits, taught: bool = False) -> None:
        self._program, self._criteria, self._splits, self._taught = program, criteria, splits, taught
        self._names: dict[int, str] = {}
        for name in SPLITS:
            self._names.setdefault(id(getattr(splits, name)), name)
        # A byte a sample: of a million, numbers in a set would take 60 MB.
        self._seen = {name: np.zeros(len(getattr(splits, name)), bool) for name in self._names.values()}
        self._counts = {(name, task.name): [0, 0] for name in self._seen for task in criteria.tasks}
        self._labelled = {name: {task.name: 0 for task in criteria.tasks} for name in self._seen}
        self._keys: dict[str, set[str]] = {name: set() for name in self._seen}
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
        new = [] if name is None else np.flatnonzero(~self._seen[name][list(indices)]).tolist()
        if name is None or not new:
            return
        self._check(name, [indices[row] for row in new], {key: value[new] for key, value in batch.items()})
        self._seen[name][list(indices)] = True

    def rest(self, log: Log = silent) -> None:
        """Read and check all samples that were not watched, then what can only be said of a whole split.

        Raises `UserError` naming the sample, or the split that has no label for a task.
        """
        for name, seen in self._seen.items():
            data = getattr(self._splits, name)
            left = np.flatnonzero(~seen)
            size = _AT_ONCE if hasattr(data, "batch") else 1
            said = time.monotonic()
            for start in tracked(range(0, len(left), size), f"labels of {name}"):
                indices = left[start : start + size].tolist()
                self.watch(data, indices, fetch(data, indices))
                if time.monotonic() - said > _PATIENCE:
                    log(f"[data] {name}: the labels of {int(seen.sum())} of {len(data)} samples checked")
                    said = time.monotonic()
            if len(seen):
                self._whole(name)
        self.accept(self.counts(), log)

    def counts(self) -> dict[str, Any]:
        """JSON values, by split: how many samples have a label of each task, and the keys of samples."""
        names = {split: self._names[id(getattr(self._splits, split))] for split in SPLITS}
        return {
            "labelled": {split: dict(self._labelled[name]) for split, name in names.items()},
            "keys": {split: sorted(self._keys[name]) for split, name in names.items()},
        }

    def accept(self, counts: Mapping[str, Any], log: Log = silent) -> None:
        """Put `counts`, these or earlier ones of the same data, into ``splits.labelled``.

        Raises `UserError` naming the task and the split that has no label of it. An empty train split is let pass.
        """
        for split, labelled in counts["labelled"].items():
            if not len(getattr(self._splits, split)):
                continue
            keys = counts["keys"][split]
            for task in self._criteria.tasks:
                if labelled[task.name]:
                    continue
                if split != "train" or not self._taught:
                    raise (
                        _no_label_counts(task, split)
                        if task.target_key in keys
                        else no_labels(task, keys, f"the {split} split")
                    )
                log(
                    f"warning: [data] train: no sample has a label of task {task.name!r}: it learns from the outputs "
                    "of the uncompressed network alone"
                )
            for task in self._program.auxiliary:
                if split == "train" and task.target_key not in keys:
                    raise no_labels(task, keys, "the train split")
        self._splits.labelled = {split: dict(found) for split, found in counts["labelled"].items()}
        self._say(log)

    def _say(self, log: Log) -> None:
        """How many samples each task has, if some have no label of some task."""
        for task in self._criteria.tasks:
            found = [(self._splits.labelled or {})[split][task.name] for split in SPLITS]
            sizes = [len(getattr(self._splits, split)) for split in SPLITS]
            if found != sizes:
                told = (f"{have} of {of} {split}" for have, of, split in zip(found, sizes, SPLITS, strict=True))
                log(f"[data] labels of task {task.name!r}: {', '.join(told)} samples")

    def _whole(self, name: str) -> None:
        for task in self._criteria.tasks:
            valid, positive = self._counts[name, task.name]
            if not self._labelled[name][task.name]:
                continue  # `accept` says whether that will do
            if not valid:
                raise _no_label_counts(task, name)
            if name == "train" and not positive and _shares in _rules(task):
                raise UserError(
                    f"[data] train: no label of task {task.name!r} is positive, and {_ignored(task)} does not count; "
                    f"if {task.target_key!r} holds masks of 0 and 255, divide them by 255"
                )

    def _check(self, name: str, indices: Sequence[int], whole: Batch) -> None:
        check_inputs(whole, self._program.inputs, name, indices)
        self._keys[name].update(whole)
        for task in self._criteria.tasks:
            if task.target_key not in whole:
                continue
            there = has_label(whole, task.target_key)
            rows = range(len(indices)) if there is None else there.nonzero()[:, 0].tolist()
            if not rows:
                continue
            batch = whole if there is None else {key: value[rows] for key, value in whole.items()}
            if self._fault(task, batch, self._expected(batch)) is not None:
                parts = ({key: value[at : at + 1] for key, value in batch.items()} for at in range(len(rows)))
                alone = (self._alone(name, indices[row], task) for row in rows)
                # Where no sample is at fault that is read again, as where it is drawn anew, those of the batch tell.
                if not self._name_fault(name, task, [indices[row] for row in rows], alone):
                    self._name_fault(name, task, [indices[row] for row in rows], parts)
            counts = self._counts[name, task.name]
            valid, positive = self._count(task, batch)
            counts[0] += valid
            counts[1] += positive
            outputs = self._expected(batch)
            output = self._stand_in(task, batch[task.target_key]) if outputs is None else outputs[task.name]
            known = labelled_rows(task, output, batch, "loss")
            self._labelled[name][task.name] += len(rows) if known is None else int(known.sum())

    def _name_fault(self, name: str, task: TaskSpec, indices: Sequence[int], samples: Iterable[Batch | None]) -> bool:
        """Raise `UserError` for the first of some samples, batches of one, that is at fault by its own output too.

        Returns whether there are faults by the output that stands for all.
        """
        any_fault = False
        for index, one in zip(indices, samples, strict=True):
            fault = None if one is None else self._fault(task, one, self._expected(one))
            if one is not None and fault is not None:
                any_fault = True
                if self._is_its_own(task, one):
                    raise UserError(f"[data] {self._place(name, index)}: {fault}")
        return any_fault

    def _alone(self, name: str, index: int, task: TaskSpec) -> Batch | None:
        """A sample read again without others: stacked, it may have taken the type of another's label. None where that
        fails, or gives no label.
        """
        try:
            one = fetch(getattr(self._splits, name), [index])
        except UserError:
            return None
        return one if task.target_key in one and has_label(one, task.target_key) is None else None

    def _place(self, name: str, index: int) -> str:
        """What a sample is called: in the split that its own is a part of, where it is one."""
        place = getattr(getattr(self._splits, name), "place", None)
        return f"{name} sample {index}" if place is None else str(place(index))

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
        if _boxes in _rules(task):  # a label's shape says nothing of the output's
            return known[task.name].new_zeros(1).expand(len(target), *known[task.name].shape[1:])
        channels = known[task.name].shape[1:2]
        shape = (len(target), *channels, *target.shape[1:]) if _classes in _rules(task) else target.shape
        return known[task.name].new_zeros(1).expand(shape)

    def _run(self, batch: Batch) -> dict[str, Tensor]:
        with torch.inference_mode():
            return self._program.outputs_on_data({name: batch[name][:1] for name in self._program.inputs})

    def _count(self, task: TaskSpec, batch: Batch) -> tuple[int, int]:
        """How many elements of the labels count, and how many of these are positive."""
        target, rules = batch[task.target_key], _rules(task)
        if _boxes in rules:
            return int(((target[..., 4] >= 0) & (target[..., 4] != _ignored(task))).sum()), 0
        outputs = self._expected(batch)
        output = self._stand_in(task, target) if outputs is None else outputs[task.name]
        valid = counting(task, output, target, "loss")
        if valid is None:
            return target.numel(), 0
        return int(valid.sum()), int(((target > 0.5) & valid).sum()) if _shares in rules else 0


def _no_label_counts(task: TaskSpec, split: str) -> UserError:
    return UserError(
        f"[data] {split}: no label of task {task.name!r} counts, in any of its samples; "
        f"look at what {task.target_key!r} holds"
    )


def _rules(task: TaskSpec) -> set[Rule]:
    return {_RULES[name] for name in (task.loss, task.metric) if name in _RULES}
