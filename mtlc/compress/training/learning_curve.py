"""Follows a training: running losses, now and then the metrics of the averaged weights, and whether more would pay."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import MetricTotals
from mtlc.evaluation.splits import batches
from mtlc.program.modes import evaluating
from mtlc.program.program import Program

POINTS = (8, 4)
"""How many times the metrics are measured: at equal distances, the most that leave enough samples to each."""
_SHARE = 0.05  # of the training's work that all measurements together may take
_FORWARDS = 3  # what a sample costs in training, in forwards: one forward, and a backward of about two
_MEASURED_AT_ONCE = 64  # samples in a forward of a measurement
_LEAST = 16  # samples that a metric takes to say anything
_LOSSES = 50  # points of the running losses
WORTH = 0.5
"""In % of the metric: more training is advised where some task would gain at least that."""


class Measurements:
    """When to measure, and on how many samples of the calibration split: at most `_SHARE` of the training's work."""

    def __init__(self, steps: int, batch: int, calibration: int) -> None:
        work = _SHARE * _FORWARDS * steps * batch
        wanted = min(64, calibration)
        fitting = [points for points in POINTS if points <= steps and work / points >= wanted]
        # Few samples at the fewest points, rather than none, as long as they say anything.
        if not fitting and POINTS[-1] <= steps and work / POINTS[-1] >= min(_LEAST, calibration):
            fitting = [POINTS[-1]]
        self.points = fitting[0] if fitting else 0
        self.samples = min(calibration, int(work / self.points)) if self.points else 0
        self._steps = {round(steps * (i + 1) / self.points) for i in range(self.points)}
        self._losses = {math.ceil(steps * (i + 1) / min(_LOSSES, steps)) for i in range(min(_LOSSES, steps))}

    def of_metrics(self, step: int) -> bool:
        """Whether the metrics are measured after `step` steps."""
        return step in self._steps

    def of_losses(self, step: int) -> bool:
        """Whether the running losses after `step` steps are kept."""
        return step in self._losses


@contextmanager
def generators_kept() -> Iterator[None]:
    """What is drawn within the block is not missing afterwards: a training goes on as if nothing had been measured."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def metrics_so_far(
    program: Program, criteria: Criteria, calibration: Any, samples: int, device: torch.device
) -> dict[str, float | None]:
    """The metrics by task on the first `samples` of the calibration split; None for one that is no finite number.

    The network is on `device`, the labels stay where they are.
    """
    totals = MetricTotals(criteria)
    with generators_kept(), evaluating(program.module), torch.inference_mode():
        for batch in batches(calibration, _MEASURED_AT_ONCE, samples):
            outputs = program.outputs_on_data({name: batch[name].to(device) for name in program.inputs})
            totals.update({name: value.cpu() for name, value in outputs.items()}, batch)
    return {name: value if math.isfinite(value) else None for name, value in totals.values().items()}


def more_epochs(
    curve: Mapping[str, Sequence[Mapping[str, Any]]], criteria: Criteria, epochs: float
) -> dict[str, Any] | None:
    """Whether twice the `epochs` would pay, from the metrics of a curve: None where too few were measured.

    A metric that goes as a - b·t^-c gains from doubling t what the doubling before gained, times 2^-c. So the next gain
    is extrapolated from those between a quarter, a half and the whole of the training; where the first of these is no
    gain, c = 1 is taken. The learning rate falls along the way, so this is a guess: of "kind" modelled.

    Returns ``gain``, by task in % of the metric, ``worth``, and the ``line`` that says so.
    """
    points = {entry["step"]: entry["metrics"] for entry in curve["metrics"]}
    steps = sorted(points)
    if len(steps) < POINTS[-1]:
        return None
    count = len(steps)
    quarter, half, whole = (points[steps[count * part // 4 - 1]] for part in (1, 2, 4))
    gains = {}
    for task in criteria.tasks:
        values = [at.get(task.name) for at in (quarter, half, whole)]
        if any(value is None or not math.isfinite(value) for value in values):
            continue
        sign = 1 if criteria.higher_is_better[task.name] else -1
        before, last = sign * (values[1] - values[0]), sign * (values[2] - values[1])
        ratio = min(1.0, last / before) if before > 0 else 0.5
        # No error falls by more than all of it.
        gains[task.name] = min(100.0, 100 * max(0.0, last) * ratio / max(abs(values[2]), 1e-12))
    if not gains:
        return None
    most = max(gains, key=gains.__getitem__)
    worth = gains[most] >= WORTH
    line = (
        f"more epochs would pay: twice as many ({2 * epochs:g}) promise {most} {gains[most]:.1f} % of its metric"
        if worth
        else f"more epochs would hardly pay: twice as many ({2 * epochs:g}) promise no task {WORTH:g} % of its metric"
    )
    return {
        "kind": "modelled",
        "worth": worth,
        "gain": {name: round(value, 3) for name, value in gains.items()},
        "line": line,
    }


def training_report(
    steps: int, batch: int, seconds: float, losses: Mapping[str, float], curve: Mapping[str, Any],
    steps_per_epoch: int, samples: int,
) -> dict[str, Any]:  # fmt: skip
    """What is told of a training of so many steps: its last losses, and its curve, whose metrics are of `samples`."""
    return {
        "steps": steps,
        "samples": steps * batch,
        "seconds": round(seconds, 1),
        "losses": {name: round(value, 5) for name, value in losses.items()},
        "curve": {"steps_per_epoch": steps_per_epoch, "samples": samples, **curve},
    }
