"""Compares the ONNX programs that decode detections with the runtime's own decoding.

A bundle holds both: the runtime decodes with numpy, another device runs the program. On real outputs of the bundle and
on random ones, which have boxes even where the network has learned nothing, they must find the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from mtlc.box_decoding import decode_boxes, detect, overlaps
from mtlc.detection import Detection
from mtlc.errors import VerificationError, reason
from mtlc.export.graph.detection_program import DETECTIONS
from mtlc.runtime.backends.find_backend import find_backend
from mtlc.runtime.bundle.manifest import TaskInfo
from mtlc.runtime.bundle.open_bundle import open_bundle
from mtlc.runtime.session import Session

_PIXELS = 1e-3
"""What a corner may differ by, as a share of the picture's longer side."""
_SCORE = 1e-4
_TIE = 1e-6
"""So near a threshold, rounding decides."""
_RANDOM = 3  # random outputs that are tried


def verify_decoders(path: Path, samples: Mapping[str, Tensor], backend: str = "auto") -> dict[str, int]:
    """The number of boxes compared, by task with a decoder, in the bundle at `path` on `samples` (inputs by name).

    `backend` runs the programs. Raises `VerificationError` naming the task whose program finds other boxes.
    """
    with Session(path) as session:
        tasks = [task for task in session.tasks.values() if task.decoder is not None]
        if not tasks:
            return {}
        inputs = {info.name: samples[info.name].cpu().numpy() for info in session.manifest.inputs}
        outputs = session.run(inputs, [task.name for task in tasks])
    found = {}
    with open_bundle(path) as opened:
        for task in tasks:
            assert task.decoder is not None
            found[task.name] = _verify(task, opened.file(task.decoder), outputs[task.name], backend)
    return found


def _verify(task: TaskInfo, file: Path, output: np.ndarray, backend: str) -> int:
    how, where = task.postprocess, f"task {task.name!r}: its decoder"
    assert how is not None
    noise = np.random.default_rng(0).normal(0, 1.5, (_RANDOM, *output.shape[1:])).astype(output.dtype)
    boxes = 0
    try:
        program = find_backend(backend).load(file, 1, None)
    except Exception as error:
        raise VerificationError(f"{where} cannot be loaded: {reason(error)}") from error
    try:
        for raw in (output, noise):
            (made,) = program.run([DETECTIONS], {task.output: raw})
            expected = detect(raw, how)
            if made.shape != expected.shape:
                raise VerificationError(f"{where} gives {made.shape}, the runtime {expected.shape}")
            for index in range(len(raw)):
                boxes += _compare(made[index], expected[index], raw[index], how, where)
    finally:
        program.close()
    return boxes


def _compare(made: np.ndarray, expected: np.ndarray, raw: np.ndarray, how: Detection, where: str) -> int:
    """How many boxes the two detections (K, 6) of one raw output (A, D) have in common."""
    one, two = (rows[rows[:, 4] >= 0] for rows in (made, expected))
    if max(len(one), len(two)) == len(made):  # there may be more, of which rounding says which are the best
        least = max(rows[:, 5].min() for rows in (one, two) if len(rows)) + _TIE
        one, two = one[one[:, 5] > least], two[two[:, 5] > least]
    for label in np.union1d(one[:, 4], two[:, 4]):
        here, there = one[one[:, 4] == label], two[two[:, 4] == label]
        if not _same(here, there, _PIXELS * max(how.size)) and not _tied(raw, int(label), how):
            raise VerificationError(
                f"{where} finds {len(here)} boxes of class {int(label)} where the runtime finds {len(there)}, or others"
            )
    return len(two)


def _same(one: np.ndarray, two: np.ndarray, pixels: float) -> bool:
    """Whether two sets of boxes of a class are the same; equal scores may stand in either order."""
    if len(one) != len(two):
        return False
    left = two
    for row in one:
        near = (np.abs(left[:, :4] - row[:4]) <= pixels).all(1) & (np.abs(left[:, 5] - row[5]) <= _SCORE)
        if not near.any():
            return False
        left = np.delete(left, int(near.argmax()), 0)
    return True


def _tied(raw: np.ndarray, label: int, how: Detection) -> bool:
    """Whether rounding decides which boxes of a class stay."""
    boxes, scores = (part[0] for part in decode_boxes(raw[None], how))
    score = scores[:, label]
    if (np.abs(score - how.score) < _TIE).any():
        return True
    kept = boxes[score > how.score]
    return any(bool((np.abs(overlaps(box, kept) - how.iou) < _TIE).any()) for box in kept)
