"""Guesses which task a network's output and a data set's label are: the loss, the metric, and what is not sure of it.

| label | output | guessed |
|---|---|---|
| whole numbers (N, …), fewer than C | (N, C, …) | ``cross_entropy``; ``accuracy`` of one a sample, ``miou`` of a map |
| boxes (N, M, 5) | (N, A, D) with a point for each cell of some strides | ``simota``, ``map`` |
| vectors of length 1 (N, 3, H, W) | the same | ``normals_l1``, ``mean_angle`` |
| 0 and 1 | the same | ``balanced_bce``, ``max_jaccard``; of edges ``edge_bce``, ``odsf`` |
| other numbers | the same | ``l1``, ``rmse`` of measurements above 0, else ``mse``, ``mse`` |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mtlc.detection import Detection
from mtlc.tasks.labels import IGNORED

_STRIDES = (4, 8, 16, 32, 64, 128)
_EDGES = re.compile(r"edge|bound|contour", re.IGNORECASE)
_NORMALS = re.compile(r"normal", re.IGNORECASE)
_MASKS = re.compile(r"mask|salien|binary|fore?ground|lane|road", re.IGNORECASE)
_DEPTH = re.compile(r"depth|dist|range", re.IGNORECASE)
_NO_LABEL = (-1, -100, 254, IGNORED)
"""Numbers that usually say that there is no label."""


@dataclass(frozen=True)
class Guess:
    """What an output and a label look like together. `kind` names a task that has no name yet."""

    kind: str
    loss: str
    metric: str
    why: str
    doubts: tuple[str, ...] = ()
    ignore: int | None = None
    postprocess: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class GuessedTask:
    """A task of the job: the output and the label that it goes with, by their keys."""

    name: str
    output: str
    target: str
    guess: Guess


@dataclass
class GuessedTasks:
    """The tasks in the order of the labels, and what is left over."""

    tasks: list[GuessedTask] = field(default_factory=list)
    unused_outputs: list[str] = field(default_factory=list)
    unused_labels: list[str] = field(default_factory=list)


def guess_tasks(
    outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor], size: tuple[int, int] | None, named: bool
) -> GuessedTasks:
    """Which output goes with which label, and what they look like. `size` (H, W) is that of the input picture.

    A label goes with the output of its name where the two fit, else with the first that fits; the label that fits
    fewest outputs chooses first. `named` is whether labels have names of their own, which are then the tasks'.
    """
    fits = {
        label: {key: guess for key, output in outputs.items() if (guess := guess_pair(output, given, label, key, size))}
        for label, given in labels.items()
    }
    chosen: dict[str, str] = {}
    for label, found in fits.items():
        same = [key for key in found if _same_name(key, label)]
        if same and same[0] not in chosen.values():
            chosen[label] = same[0]
    for label in sorted(fits, key=lambda one: len(fits[one])):
        free = [key for key in fits[label] if key not in chosen.values()]
        if label not in chosen and free:
            chosen[label] = free[0]
    made = GuessedTasks()
    taken: set[str] = set()
    for label in labels:
        if label not in chosen:
            made.unused_labels.append(label)
            continue
        key, guess = chosen[label], fits[label][chosen[label]]
        others = [other for other in fits[label] if other != key and other not in chosen.values()]
        if others and not _same_name(key, label):
            guess = replace(
                guess, doubts=(*guess.doubts, f"the label also fits the output {' and '.join(map(repr, others))}")
            )
        name = _free_name(_word(key) or (label if named else guess.kind), taken)
        made.tasks.append(GuessedTask(name, key, label if named else name, guess))
    made.unused_outputs = [key for key in outputs if key not in chosen.values()]
    return made


def guess_alone(outputs: Mapping[str, Tensor], size: tuple[int, int] | None) -> GuessedTasks:
    """What the outputs look like where there is no data; outputs that look like nothing are left over."""
    made, taken = GuessedTasks(), set[str]()
    for key, output in outputs.items():
        guess = _of_output(output, key, size)
        if guess is None:
            made.unused_outputs.append(key)
            continue
        name = _free_name(_word(key) or guess.kind, taken)
        guess = replace(guess, doubts=(*guess.doubts, "guessed from the output's shape and name alone"))
        made.tasks.append(GuessedTask(name, key, name, guess))
    return made


def guess_pair(
    output: Tensor, label: Tensor, name: str, key: str, size: tuple[int, int] | None
) -> Guess | None:  # fmt: skip
    """What an output (N, …) and its label (N, …) look like; None where no loss of mtlc takes them together."""
    if not output.is_floating_point() or output.ndim < 2 or len(output) != len(label):
        return None
    if label.ndim == 3 and label.shape[-1] == 5 and label.is_floating_point():
        boxes = label.flatten(0, 1)
        boxes = boxes[(boxes[:, 4] >= 0) & (boxes[:, 4] != IGNORED)]
        classes = int(boxes[:, 4].max()) + 1 if len(boxes) else None
        detected = _detection(output, size, classes)
        if detected is not None:
            return detected
    if not label.is_floating_point():
        found = _classes(output, label)
        if found is not None:
            return found
    if output.shape != label.shape:
        return None
    values = label.float()
    values = values[torch.isfinite(values)]
    binary = bool(torch.isin(values, torch.tensor([0.0, 1.0, float(IGNORED)])).all()) and bool((values == 1).any())
    if binary:
        return _binary(f"{name} {key}")
    if not label.is_floating_point():
        return Guess("regression", "mse", "mse", f"whole numbers from {int(label.min())} to {int(label.max())}")
    if output.ndim == 4 and output.shape[1] == 3 and _are_unit(label):
        return Guess("normals", "normals_l1", "mean_angle", "vectors of length 1")
    return _numbers(values, label.ndim, f"{name} {key}")


def _classes(output: Tensor, label: Tensor) -> Guess | None:
    """Class numbers and a score for each class."""
    if tuple(label.shape) != (*output.shape[:1], *output.shape[2:]):
        return None
    classes = output.shape[1]
    values = label.long().unique().tolist()
    outside = [value for value in values if not 0 <= value < classes]
    unlabelled = [value for value in outside if value in _NO_LABEL]
    if classes < 2 or len(outside) != len(unlabelled) or len(outside) > 1 or len(outside) == len(values):
        return None
    least, most = min(value for value in values if value not in outside), max(set(values) - set(outside))
    why = f"whole numbers from {least} to {most}, and a score for each of {classes} classes"
    doubts = [] if most == classes - 1 else [f"no label above {most} was seen, of {classes} classes"]
    ignore = None
    if outside and outside[0] != IGNORED:
        ignore = outside[0]
        doubts.append(f"{ignore} is taken for no label")
    elif outside:
        why += f"; {IGNORED} is no label"
    one = label.ndim == 1
    kind, metric = ("classification", "accuracy") if one else ("segmentation", "miou")
    return Guess(kind, "cross_entropy", metric, why, tuple(doubts), ignore)


def _detection(output: Tensor, size: tuple[int, int] | None, classes: int | None) -> Guess | None:
    if output.ndim != 3 or size is None or output.shape[2] < 6:
        return None
    for first in range(len(_STRIDES)):
        for last in range(len(_STRIDES), first, -1):
            how = Detection(size, _STRIDES[first:last])
            if how.anchors != output.shape[1]:
                continue
            columns = output.shape[2]
            objectness = columns - 4 != classes
            doubts = ["how four numbers are a box (encoding) cannot be seen: distances, or center_size as in YOLOX"]
            if classes is None or columns - 4 - objectness != classes:
                doubts.append(f"{columns - 5} classes and objectness, or {columns - 4} classes without it")
            table: dict[str, Any] = {"kind": "detection", "size": list(size), "strides": list(how.strides)}
            table |= {} if objectness else {"objectness": False}
            why = f"boxes, and {how.anchors} points of the strides {', '.join(map(str, how.strides))}"
            return Guess("detection", "simota", "map", why, tuple(doubts), postprocess=table)
    return None


def _binary(names: str) -> Guess:
    if _EDGES.search(names):
        return Guess("edges", "edge_bce", "odsf", "0 and 1, and the name", ("the output is taken for logits",))
    doubt = "the output is taken for logits; for edges: edge_bce and odsf"
    return Guess("mask", "balanced_bce", "max_jaccard", "0 and 1", (doubt,))


def _numbers(values: Tensor, axes: int, names: str) -> Guess:
    if not values.numel():
        return Guess("regression", "l1", "rmse", "no label was seen in the samples that were looked at")
    least, most = float(values.min()), float(values.max())
    why = f"numbers from {least:.4g} to {most:.4g}"
    if least >= 0 and most > 0 and axes > 2:
        zeros = float((values == 0).float().mean())
        doubts = [] if _DEPTH.search(names) else ["the metric is shown in m, as of depth"]
        if zeros:
            doubts.append(f"0, which {zeros:.1%} are, counts as not measured; where it does not: mse and mse")
        return Guess("regression", "l1", "rmse", why, tuple(doubts))
    return Guess("regression", "mse", "mse", why)


def _of_output(output: Tensor, key: str, size: tuple[int, int] | None) -> Guess | None:
    if not output.is_floating_point() or output.ndim < 2:
        return None
    shape = f"an output (N, {', '.join(map(str, output.shape[1:]))})"
    detected = _detection(output, size, None)
    if detected is not None:
        return detected
    channels = output.shape[1]
    if output.ndim == 2:
        if channels == 1:
            return Guess("regression", "mse", "mse", shape)
        return Guess("classification", "cross_entropy", "accuracy", shape)
    if output.ndim != 4:
        return None
    if channels == 1:
        if _EDGES.search(key) or _MASKS.search(key):
            return replace(_binary(key), why=f"{shape}, and its name")
        return Guess("regression", "l1", "rmse", shape, ("for a mask: balanced_bce and max_jaccard",))
    if channels == 3 and _NORMALS.search(key):
        return Guess("normals", "normals_l1", "mean_angle", f"{shape}, and its name")
    return Guess("segmentation", "cross_entropy", "miou", shape)


def _are_unit(label: Tensor) -> bool:
    lengths = torch.linalg.vector_norm(label, dim=1)
    lengths = lengths[torch.isfinite(lengths) & (lengths > 0)]
    return bool(lengths.numel()) and bool((lengths - 1).abs().max() < 0.05)


def _same_name(key: str, label: str) -> bool:
    return key.lower() == label.lower() or key.rpartition(".")[2].lower() == label.lower()


def _word(key: str) -> str:
    """An output's key as a task's name; empty where it is a number or nothing."""
    word = re.sub(r"\W+", "_", key).strip("_")
    return word if word.isidentifier() else ""


def _free_name(wanted: str, taken: set[str]) -> str:
    word = re.sub(r"\W+", "_", wanted).strip("_")
    word = word if word.isidentifier() else f"task_{word}" if word else "task"
    name, number = word, 2
    while name in taken:
        name, number = f"{word}{number}", number + 1
    taken.add(name)
    return name


def shapes_of(tensors: Mapping[str, Tensor]) -> str:
    """Keys and shapes, for messages; a lone tensor has no key."""
    return ", ".join(f"{key!r} {_shape(one.shape)}" if key else _shape(one.shape) for key, one in tensors.items())


def _shape(sizes: Sequence[int] | Iterable[int]) -> str:
    return f"(N, {', '.join(str(size) for size in list(sizes)[1:])})".replace(", )", ")")
