"""Draws what the network sees and says on a few validation samples: the pictures of the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mtlc.box_decoding import detect
from mtlc.errors import UserError
from mtlc.evaluation.collation import has_label
from mtlc.evaluation.splits import Batch, fetch
from mtlc.files import atomic_file, check_plain
from mtlc.program.program import Program
from mtlc.runtime.bundle.manifest_reader import preprocessing
from mtlc.runtime.pictures import draw_boxes, picture
from mtlc.tasks.labels import ignored_class
from mtlc.tasks.simota import detection_of
from mtlc.tasks.task import TaskSpec
from mtlc.workflows.opened_job import Opened

Pictures = dict[str, np.ndarray]

_GREY = 128
"""The value of pixels where there is nothing to show."""


def draw(opened: Opened, compressed: Program, count: int) -> Pictures:
    """``image`` and ``truth_<task>``, ``before_<task>``, ``after_<task>`` of `count` validation samples spread evenly.

    Each is (count, H, W, 3) uint8. Tasks whose output is no picture, inputs that are none, and tasks that the
    compressed network no longer has are left out. The truth of a sample without a label is grey.
    """
    split = opened.splits.validation
    count = min(count, len(split))
    if not count:
        return {}
    batch = fetch(split, [index * len(split) // count for index in range(count)])
    with torch.inference_mode():
        before, after = opened.program.outputs(batch), compressed.outputs(batch)
    stacks: Pictures = {}
    shown = _inputs(batch[opened.program.inputs[0]].numpy(), opened)
    if shown is not None:
        stacks["image"] = shown
    for task in compressed.tasks:
        there = _has_label(batch, task.target_key, count)
        if task.postprocess is not None:
            if shown is not None:
                truths = batch.get(task.target_key, torch.zeros(count, 0, 5)).clone()
                truths[~there] = -1  # of class -1: nothing
                stacks |= _boxes(task, shown, truths, before[task.name], after[task.name])
            continue
        kind = opened.criteria.kinds[task.name]
        truth = batch[task.target_key].numpy() if task.target_key in batch else before[task.name].numpy()
        made: dict[str, list[np.ndarray]] = {"truth": [], "before": [], "after": []}
        if before[task.name].ndim != 4 or truth.ndim < 3:
            continue
        for index in range(count):
            outputs = {"before": before[task.name][index].numpy(), "after": after[task.name][index].numpy()}
            # Without a label the scale is that of what the original network says.
            low, high = _range(kind, truth[index] if there[index] else outputs["before"])
            for role, output in outputs.items():
                made[role].append(picture(kind, output, low, high))
            ignored = ignored_class(before[task.name].shape[1], task.ignore)
            made["truth"].append(
                _truth(kind, truth[index], ignored) if there[index] else np.full_like(made["before"][-1], _GREY)
            )
        stacks |= {f"{role}_{task.name}": np.stack(pictures) for role, pictures in made.items()}
    return stacks


def _has_label(batch: Batch, key: str, count: int) -> Tensor:
    """(N,) bool: which samples have the label `key`."""
    if key not in batch:
        return torch.zeros(count, dtype=torch.bool)
    there = has_label(batch, key)
    return torch.ones(count, dtype=torch.bool) if there is None else there


def _boxes(task: TaskSpec, shown: np.ndarray, truth: Tensor, before: Tensor, after: Tensor) -> Pictures:
    """The boxes of the labels (N, M, 5) and of two raw outputs (N, A, D), drawn on the pictures (N, H, W, 3)."""
    how = detection_of(task.postprocess)
    found = {"truth": truth.numpy(), "before": detect(before.numpy(), how), "after": detect(after.numpy(), how)}
    return {
        f"{role}_{task.name}": np.stack([draw_boxes(image, rows) for image, rows in zip(shown, boxes, strict=True)])
        for role, boxes in found.items()
    }


def _truth(kind: str, labels: np.ndarray, ignored: int | None) -> np.ndarray:
    low, high = _range(kind, labels)
    shown = picture(kind, labels, low, high, logits=False)
    if kind == "labels" and ignored is not None:
        shown[np.asarray(labels).reshape(shown.shape[:2]) == ignored] = 0
    return shown


def _range(kind: str, labels: np.ndarray) -> tuple[float | None, float | None]:
    """One scale for the labels and both predictions, or their colours would not compare. Zero marks no measurement."""
    if kind not in ("scalar", "unknown"):
        return None, None
    valid = labels[np.isfinite(labels) & (labels != 0)]
    return (float(np.percentile(valid, 2)), float(np.percentile(valid, 98))) if valid.size else (0.0, 1.0)


def _inputs(x: np.ndarray, opened: Opened) -> np.ndarray | None:
    """The network's input (N, C, H, W) as pictures again: its preprocessing undone, or stretched if it has none."""
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        return None
    given = opened.program.preprocessing
    if given is None:
        low, high = x.min(), x.max()
        pixels = (x - low) / max(float(high - low), 1e-12) * 255
    else:
        how = preprocessing(dict(given))
        mean, std = (np.asarray(value, np.float32).reshape(1, -1, 1, 1) for value in (how.mean, how.std))
        pixels = (x * std + mean) / how.scale
        if how.color == "BGR":
            pixels = pixels[:, ::-1]
    pixels = np.rint(np.clip(np.broadcast_to(pixels, (len(x), 3, *x.shape[2:])), 0, 255)).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def save(pictures: Pictures, path: Path) -> None:
    """Keep the pictures, so that the report can be rendered again without the network."""
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **pictures)  # type: ignore[arg-type]


def load(path: Path) -> Pictures:
    """The pictures that `save` wrote; none if there is no such file."""
    if not path.exists():
        return {}
    check_plain(path)
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception:  # BadZipFile, and whatever else a damaged file makes numpy's readers raise
        raise UserError(f"{path}: damaged; delete it for a report without pictures, or run the job again") from None
