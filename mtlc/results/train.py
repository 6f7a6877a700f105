"""Describes a training: how it went, and the metrics of the weights that were written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlc.results.base import Result


class LossPoint(Result):
    """The losses at a step of a training."""

    step: int
    """Steps that were done."""
    losses: dict[str, float | None]
    """The running mean of each task's loss, in the unit of the loss."""


class MetricPoint(Result):
    """The metrics at a step of a training."""

    step: int
    """Steps that were done."""
    metrics: dict[str, float | None]
    """Each task's metric of the averaged weights, in its unit."""


class LearningCurve(Result):
    """How a training went on its way."""

    steps_per_epoch: int
    """Steps of an epoch."""
    samples: int
    """Samples of the calibration split, always the same, that the metrics are of; 0 where none were measured."""
    losses: list[LossPoint]
    """At up to 50 steps, evenly spaced."""
    metrics: list[MetricPoint]
    """At 8 or 4 steps, evenly spaced; none where measuring would take more than 5 % of the training."""


class MoreEpochs(Result):
    """Whether twice the epochs would pay."""

    kind: str
    """``"modelled"``: extrapolated from the learning curve."""
    worth: bool
    """Whether some task would gain 0.5 % of its metric or more."""
    gain: dict[str, float]
    """What each task would gain, in % of its metric."""
    line: str
    """The same in a line."""


class Recipe(Result):
    """The numbers of a fine-tuning, and where each is from."""

    epochs: float
    """Passes over the train split."""
    epochs_from: str
    """Where they are from: ``given``, or ``auto`` and the steps that they make."""
    lr: float
    """The highest learning rate."""
    lr_from: str
    """Where it is from: ``given``, ``that of [train]``, or ``a range test``."""
    range_test: dict[str, Any] | None = None
    """The range test: ``steps`` in all, and for each of ``rates`` the losses as a share of those without a step."""


class TrainingEffort(Result):
    """How a training went."""

    steps: int
    """Steps of the optimizer."""
    samples: int
    """Samples that the steps saw."""
    seconds: float
    """Time that it took, over all runs that it took part in, in s."""
    losses: dict[str, float | None]
    """The running mean of each task's loss at the end, in the unit of the loss."""
    curve: LearningCurve | None = None
    """How the losses and metrics went on the way."""
    more_epochs: MoreEpochs | None = None
    """Whether more epochs would pay; None where too few metrics were measured."""
    recipe: Recipe | None = None
    """The numbers of a fine-tuning, and where they are from."""
    norms: bool | None = None
    """Whether batch-norm statistics measured anew at the end stay; None where none were measured."""


def trainings_of(report: Mapping[str, Any]) -> dict[str, TrainingEffort]:
    """The trainings in a pass's report that have a curve, by name: ``round 1`` of several, ``""`` of one."""
    found = {"": report, "training": report.get("training")}
    rounds = report.get("rounds")
    if isinstance(rounds, list):
        found |= {f"round {i}": one.get("training") for i, one in enumerate(rounds, 1) if isinstance(one, Mapping)}
    named = {name: one for name, one in found.items() if isinstance(one, Mapping) and one.get("curve")}
    return {"" if len(named) == 1 else name: TrainingEffort.read(one, name) for name, one in named.items()}


class ValidationResult(Result):
    """Losses and metrics by task on the validation split."""

    losses: dict[str, float | None]
    """Each task's loss, in the unit of the loss."""
    metrics: dict[str, float | None]
    """Each task's metric, in its unit."""
    details: dict[str, dict[str, float | None]]
    """What each task's metric tells besides, by name."""


class TrainResults(Result):
    """What `train_job` returns, and ``FILE.train.json`` beside the weights holds."""

    weights: str
    """The file of weights that was written."""
    training: TrainingEffort
    """How the training went."""
    config: dict[str, Any]
    """The job's ``[train]`` section with every default filled in; its schema is the job's (``docs/job.md``)."""
    seed: int
    """Seed of the job."""
    overrides: dict[str, Any] | None = None
    """What was set over the job's file, by key in dots. Left out where nothing was."""
    validation: ValidationResult
    """The written weights on the validation split."""
    units: dict[str, str]
    """Unit of each task's metric."""
