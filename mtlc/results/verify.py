"""Describes what ``mtlc verify`` found: of one bundle, or of two bundles or backends against each other."""

from __future__ import annotations

from typing import Any

from mtlc.results.base import Result
from mtlc.results.tasks import IntervalResult


class VerifyResult(Result):
    """A bundle that is whole and safe to open, and how far it is from a checkpoint, if one was given."""

    bundle: str
    """Path of the bundle."""
    files: int
    """How many files it has."""
    bytes: int
    """Their size, in bytes."""
    tasks: list[str]
    """Its tasks."""
    compared: dict[str, dict[str, Any]] | None
    """By task: ``max_abs`` and ``max_rel`` by batch size, ``near_ties`` and ``vacuous``; None without a checkpoint."""


class ComparedSide(Result):
    """What ran on one side of a comparison."""

    bundle: str
    """Path of the bundle."""
    configuration: str | None
    """What it ran in; None for its default."""
    backend: str
    """What ran it."""
    version: str | None
    """Version of the backend's package; None where it has none."""
    precision: str
    """Precision of its weights and products in this backend."""


class OutputDifference(Result):
    """How far the outputs of one task are apart. All None, with the reason in `why`, if they do not compare."""

    max_abs: float | None
    """The largest difference, in the output's unit."""
    max_rel: float | None
    """It as a share of the reference's largest absolute value over all samples."""
    mean_rel: float | None
    """Σ |difference| / Σ |reference|."""
    why: str | None
    """Why they do not compare."""


class ComparedTask(OutputDifference):
    """One task on both sides. The fields from `metric` on are there only with a job."""

    near_ties: int
    """Samples that are left out: tokens in them are nearly tied between experts, and rounding may route them otherwise.
    """
    metric: str | None = None
    """Name of the metric."""
    unit: str = ""
    """Its unit."""
    higher_is_better: bool | None = None
    """Whether larger values are better."""
    value: float | None = None
    """The first side's metric; None if it is no number."""
    reference: float | None = None
    """The reference's metric; None if it is no number."""
    difference: float | None = None
    """value − reference."""
    limit: str | None = None
    """The job's ``max_drop``; None without one."""
    within: bool | None = None
    """Whether the limit is kept, with the confidence that it asks for if it does; None without one."""
    change_interval: IntervalResult | None = None
    """95 % interval of `difference`, in the metric's unit. Left out where `no_interval` says why."""
    no_interval: str | None = None
    """Why nothing is known of how far the difference is a matter of chance. Left out where it is known."""
    kept_in: float | None = None
    """The share of draws, 0 to 1, in which the limit is kept. Left out without a limit or without draws."""
    by_chance: bool | None = None
    """Whether the limit is kept by chance: the interval of the difference, as the limit measures it, reaches over the
    limit. Left out as `kept_in`."""


class PairResult(Result):
    """Two bundles or backends, task by task."""

    kind: str
    """How the figures came about: ``measured``."""
    bundle: str
    """Path of the first bundle."""
    first: ComparedSide
    """What was checked."""
    reference: ComparedSide
    """What it was checked against."""
    inputs: str
    """``random``, or the split of the job."""
    samples: int
    """How many samples were run."""
    tolerance: float | None
    """What `max_rel` may be; None where no tolerance applies."""
    tasks: dict[str, ComparedTask]
    """By task."""
    failed: list[str]
    """A line for each task over the tolerance, or whose outputs do not compare."""
    missed: list[str]
    """A line for each limit that is not kept, where no tolerance applies."""
    by_chance: list[str] = []
    """A line for each limit that is kept by chance, or of which nothing is known of that."""
    notes: list[str]
    """What to know about the comparison."""
