"""Describes what ``mtlc quantize`` found: a bundle in INT8, what each task paid, what stayed in floating point."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mtlc.results.base import Result
from mtlc.results.latency import Machine
from mtlc.results.tasks import IntervalResult


class Int8Metrics(Result):
    """A task's metric on one set of samples."""

    float_: float | None = Field(alias="float")
    """Of the bundle in floating point."""
    int8_all: float | None = None
    """With every operator in INT8 that can be; on the control samples only."""
    int8: float | None
    """Of the INT8 bundle."""
    bound: float | None
    """The worst metric that the limit allows; None without a limit."""
    within: bool | None
    """Whether the limit is kept, with the confidence that it asks for if it does; None without one."""
    change_interval: IntervalResult | None = None
    """On the validation split, the 95 % interval of the metric in INT8 less that in floating point, in its unit. Left
    out where it is not known."""
    kept_in: float | None = None
    """The share of draws, 0 to 1, in which the limit is kept. Left out without one, and on the control samples where it
    asks for no confidence."""


class Int8Task(Result):
    """What INT8 cost one task."""

    metric: str
    """Name of the metric."""
    unit: str = ""
    """Its unit."""
    higher_is_better: bool
    """Whether larger values are better."""
    limit: str | None
    """The job's ``max_drop``; None without one."""
    missed: str | None
    """A line if the limit is not kept on the validation split."""
    control: Int8Metrics
    """On the control samples, which decided."""
    validation: Int8Metrics
    """On the validation split, measured once."""


class GivenBack(Result):
    """An operator that went back to floating point."""

    program: str
    """Name of its program."""
    operator: str
    """Module path, or name of its node."""
    kind: str
    """ONNX operator."""
    task: str
    """The task for whose sake."""
    before: float | None
    """That task's metric on the control samples before; None if it was no number."""
    after: float | None
    """The metric after; None if it was no number."""


class LeftInFloat(Result):
    """An operator that was never quantised."""

    program: str
    """Name of its program."""
    operator: str
    """Module path, or name of its node."""
    why: str
    """The reason."""


class OperatorError(Result):
    """What one operator in INT8 adds to the error of tasks, all others being in INT8 too."""

    program: str
    """Name of its program."""
    operator: str
    """Module path, or name of its node."""
    shares: dict[str, float]
    """By task, the share of its output's squared error that goes if this operator alone goes back to floating point."""


class Int8Operators(Result):
    """How many operators are in INT8, and which are not."""

    int8: int
    """How many are."""
    float_: list[GivenBack] = Field(alias="float")
    """Those that went back to floating point, in order."""
    excluded: list[LeftInFloat]
    """Those that were never quantised."""
    errors: list[OperatorError] = []
    """What operators add to the error. Left out where no limit was in danger, since nothing is ranked then."""


class QuantizeResult(Result):
    """A bundle in INT8. The first five fields are those of the verb; a run's results do not have them."""

    bundle: str | None = None
    """The bundle in floating point."""
    against: str | None = None
    """The bundle whose metrics the limits refer to; None if they are those of `bundle`."""
    job: str | None = None
    """The job."""
    overrides: dict[str, Any] | None = None
    """What was set over the job's file, by key in dots. Left out where nothing was."""
    versions: dict[str, str] = {}
    """Versions of NNCF and the backend."""
    device: Machine | None = None
    """Where it was made."""
    path: str
    """The INT8 bundle."""
    bytes: int
    """Its size, in bytes."""
    bytes_before: int
    """The size in floating point, in bytes."""
    target: str
    """What it was quantised for."""
    weights: str
    """How weights are rounded: in which range."""
    backend: str | None = None
    """What measured and decided; None in a file of an earlier version."""
    operators: Int8Operators
    """What is in INT8 and what is not."""
    macs_int8: float
    """Share of the MACs in INT8."""
    handed_over: list[str] = []
    """Tensors between programs that are in 8 bits."""
    tasks: dict[str, Int8Task]
    """By task; in a bundle of several widths by task and point."""
    configurations: dict[str, dict[str, str]] = {}
    """The points of each named configuration, by task; empty without widths."""
    samples: dict[str, int]
    """How many samples gave the ranges and decided."""
    cost: dict[str, int]
    """How often what was ranked and measured."""
    missed: list[str]
    """A line for each limit that is not kept on the validation split."""
    openvino: dict[str, Any] | None = None
    """What the export to OpenVINO says; only of a run whose job asks for it."""
