"""Describes a training: how it went, and the metrics of the weights that were written."""

from __future__ import annotations

from typing import Any

from mtlc.results.base import Result


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
    validation: ValidationResult
    """The written weights on the validation split."""
    units: dict[str, str]
    """Unit of each task's metric."""
