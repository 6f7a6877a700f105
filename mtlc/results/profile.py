"""Describes what ``mtlc profile`` found: latency, instructions and memory here, and modelled times elsewhere."""

from __future__ import annotations

from pydantic import Field

from mtlc.results.base import Result
from mtlc.results.devices import DeviceResult
from mtlc.results.latency import BundleLatency, Load, Machine, Ratio


class UsedBackend(Result):
    """The backend that ran."""

    name: str
    """What it is called."""
    version: str | None
    """Version of its package; None where it has none."""


class Latencies(Result):
    """Bundles run in turns in one backend."""

    kind: str = "measured"
    """How the figures came about."""
    device: Machine = Machine()
    """Where."""
    batch: int = 1
    """Samples of one call."""
    rounds: int = 0
    """Timed calls of each bundle."""
    warmup: int = 0
    """Calls before the timed ones."""
    tasks: list[str] | dict[str, list[str]] | None = None
    """The tasks that a call runs: None for all, by label where the bundles run other tasks."""
    instructions_why: str | None = None
    """Why instructions are not counted; None if they are."""
    bundles: dict[str, BundleLatency] = {}
    """Times and memory by bundle."""
    speedup: dict[str, Ratio] = {}
    """By bundle but the first: first / this one, round by round."""
    load: Load | None = None
    """What other processes did meanwhile; None in files of earlier versions."""
    doubts: list[str] = []
    """What makes all these times doubtful, a line each."""
    backend: UsedBackend = UsedBackend(name="onnxruntime", version=None)
    """What ran them."""
    threads: int = 1
    """Threads of each program."""


class ProfiledLayer(Result):
    """The time of a layer, from the backend's own profiler."""

    name: str
    """Module path; ``(runtime)`` for what the backend added itself."""
    ms: float
    """Its time, in ms."""
    share: float
    """Of the time of all layers."""
    kernel: str
    """Its slowest kernel."""


class ProfiledOperator(Result):
    """The time of one kind of operator in one kernel."""

    kind: str
    """The exported operator."""
    kernel: str
    """What ran it."""
    ms: float
    """The time of all of them in a run, in ms."""
    share: float
    """Of the time of all operators."""
    count: float
    """How many a run has."""


class Regression(Result):
    """The growth of a cost over an earlier profile."""

    baseline: str
    """Path of the earlier profile."""
    by: str
    """What is compared: ``instructions`` or ``median_ms``."""
    why: str | None
    """Why it is not the instructions; None if it is."""
    before: float
    """The earlier cost: instructions, or ms."""
    after: float
    """The cost now: instructions, or ms."""
    spread: float
    """The larger spread of the two."""
    growth: float
    """after / before − 1."""
    max_growth: float
    """What is allowed."""
    grew: bool
    """Whether it grew by more than that."""


class ProfileResult(Latencies):
    """What a bundle costs: measured here if ``bundles`` is there, modelled on ``devices``."""

    bundle: str
    """Path of the bundle."""
    configuration: str | None = None
    """What it ran in; None for its default."""
    attributed: float = 0.0
    """Share of the profiled time that belongs to a layer."""
    layers: list[ProfiledLayer] = []
    """By layer, in the order in which they run."""
    operators: list[ProfiledOperator] = []
    """By kind and kernel, slowest first."""
    regression: Regression | None = None
    """Against the baseline, if one was given."""
    devices: list[DeviceResult] = []
    """Modelled times."""


class BaselineMachine(Result):
    """The machine that measured a baseline."""

    cpu: str
    """Model of the processor."""
    cores: int | None
    """Cores that the process could use."""
    machine: str
    """Architecture, such as ``x86_64``."""
    system: str
    """Operating system."""
    python: str
    """Version of Python."""


class BaselineInstructions(Result):
    """Instructions of one call of a baseline's bundle."""

    median: float = Field(gt=0, allow_inf_nan=False)
    """Median over the rounds."""
    spread: float | None = None
    """(p90 − p10) / median."""


class BaselineLatency(Result):
    """What one call of a baseline's bundle cost."""

    median_ms: float = Field(gt=0, allow_inf_nan=False)
    """Median, in ms."""
    spread: float
    """(p90 − p10) / median."""
    instructions: BaselineInstructions | None = None
    """Instructions of a call; None where they were not counted."""


class Baseline(Result):
    """An earlier `ProfileResult`, as far as a later one is compared with it."""

    device: BaselineMachine
    """The machine that measured."""
    backend: UsedBackend
    """What ran the bundle."""
    threads: int
    """Threads of each program."""
    batch: int
    """Samples of one call."""
    tasks: list[str] | None
    """The tasks that a call ran; None for all."""
    configuration: str | None
    """What the bundle ran in; None for its default."""
    bundle: str
    """The bundle that was profiled."""
    bundles: dict[str, BaselineLatency]
    """What a call of each bundle cost."""
    instructions_why: str | None = None
    """Why instructions were not counted; None if they were."""
