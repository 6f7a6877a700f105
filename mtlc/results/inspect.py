"""Describes what ``mtlc inspect`` reads of a checkpoint, a bundle, a job or an ONNX file."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mtlc.results.base import Result
from mtlc.results.cost import AssumedOperator


class Inspected(Result):
    """What was looked at."""

    is_: str = Field(alias="is")
    """What it is: ``checkpoint``, ``bundle``, ``job`` or ``ONNX file``."""
    path: str
    """Where it is."""


class DropLimit(Result):
    """How much a task may lose."""

    value: int | float
    """The share of the metric before, or the number in the metric's unit."""
    relative: bool
    """Whether it is a share."""
    confidence: float | None = None
    """The share of draws from the validation samples that must keep it too. Left out where none is asked for."""


class InspectedTask(Result):
    """A task of a network."""

    loss: str
    """What it is trained by."""
    metric: str
    """What it is measured by."""
    weight: int | float
    """Its weight in the sum of losses."""
    max_drop: DropLimit | None
    """How much it may lose; None where nothing is said."""


class ModelledCost(Result):
    """What one sample costs, counted from shapes."""

    kind: str
    """How the figures came about: ``modelled``."""
    macs: int
    """Multiply–accumulates of one sample."""
    params: int
    """Number of parameters."""
    peak_activation_bytes: int | None = None
    """Most memory that activations take at a time, in bytes; of an ONNX file only."""
    assumed: list[AssumedOperator] = []
    """Operators without a rule, counted as if they multiplied nothing; of an ONNX file only. Left out if there are
    none."""


class PassApplied(Result):
    """A pass that made a network, or that a job asks for."""

    name: str
    """Its name."""
    config: dict[str, Any]
    """Its settings; every pass, also a stranger's, has keys of its own."""
    report: dict[str, Any] | None = None
    """What it said of its work, in keys of its own; of a checkpoint only."""


class InspectedCheckpoint(Inspected):
    """A checkpoint."""

    factory: str
    """The factory of the network."""
    tasks: dict[str, InspectedTask]
    """Its tasks, by name."""
    inputs: dict[str, list[int]]
    """Shapes of its inputs, by name."""
    history: list[PassApplied]
    """The passes that made it, in order."""
    versions: dict[str, str]
    """Versions of the packages that wrote it, by name."""
    cost: ModelledCost | None
    """What it costs; None where its factory is not one that may be built."""


class CountedLayer(Result):
    """A layer of an ONNX file."""

    name: str
    """Module path, or name of its node; empty for the network itself."""
    kind: str
    """Kind of layer, such as ``conv`` or ``linear``."""
    macs: int
    """Multiply–accumulates of one sample."""
    parameters: int
    """Number of its parameters."""
    shape: list[int]
    """Shape of its output."""


class InspectedOnnx(Inspected):
    """An ONNX file."""

    bytes: int
    """Size of the file, in bytes."""
    tasks: dict[str, InspectedTask]
    """Empty: a file says nothing of tasks."""
    cost: ModelledCost
    """What it costs."""
    layers: list[CountedLayer]
    """Its layers, in the order in which they run."""


class InspectedJob(Inspected):
    """A job."""

    factory: str
    """The factory of the network."""
    weights: str | None
    """File of the weights; None where the factory loads its own."""
    tasks: dict[str, InspectedTask]
    """Its tasks, by name."""
    budget: dict[str, str | int | float] | None
    """The budget as the job has it; None without one."""
    passes: list[PassApplied]
    """The passes that it asks for, in order."""


class InspectedBundle(Inspected):
    """A bundle. What is in its manifest is given as it is there: ``docs/bundle.md`` says what it means."""

    bytes: int
    """Size of its files, in bytes."""
    tasks: dict[str, dict[str, Any]]
    """Its tasks, by name."""
    inputs: list[dict[str, Any]]
    """Its inputs."""
    preprocessing: dict[str, Any] | None
    """What is done to a picture before it is run; None where nothing is."""
    programs: list[dict[str, Any]]
    """Its programs, in the order in which they run."""
    device: str | None
    """The device that it was made for; None if for any."""
    provenance: dict[str, Any]
    """What it was made of and by."""
    configurations: list[dict[str, Any]]
    """What it can run as, by name."""
    widths: dict[str, Any] | None
    """Its encoders and the widths of their decoders; None in a bundle of one width."""
