"""Turns the raw outputs of a bundle's tasks into detections as its manifest declares, and back to a picture's size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mtlc.box_decoding import detect
from mtlc.errors import UserError, nearest
from mtlc.runtime.bundle.manifest import TaskInfo
from mtlc.runtime.picture_fit import Fit


def decode_outputs(tasks: Mapping[str, TaskInfo], outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs by task, those of tasks with post-processing decoded to (N, K, 6); the others as they are.

    Raises `UserError` naming the task that is not one of `tasks`, or whose output has another shape than declared.
    """
    decoded = {}
    for name, output in outputs.items():
        if name not in tasks:
            raise UserError(f"the bundle has no task {name!r}{nearest(name, tasks)}")
        how = tasks[name].postprocess
        if how is not None:
            try:
                output = detect(np.asarray(output), how)
            except UserError as error:
                raise UserError(f"task {name!r}: {error}") from None
        decoded[name] = output
    return decoded


def restored(tasks: Mapping[str, TaskInfo], outputs: Mapping[str, np.ndarray], fit: Fit) -> dict[str, np.ndarray]:
    """The outputs by task in the size of the picture that `fit` is of: see `Session.restore`."""
    made = {}
    for name, output in decode_outputs(tasks, outputs).items():
        if tasks[name].postprocess is not None:
            output = fit.back_boxes(output)
        elif output.ndim == 4:
            output = fit.back(output)
        made[name] = output
    return made
