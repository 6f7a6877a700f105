"""Describes what ``mtlc report --compare`` puts side by side: several finished runs, with what each gained and paid."""

from __future__ import annotations

from typing import Literal

from mtlc.results.base import Result
from mtlc.results.tasks import IntervalResult


class RunTask(Result):
    """What one run made of a task."""

    metric: str
    """Name of the metric."""
    unit: str = ""
    """Its unit."""
    higher_is_better: bool
    """Whether larger values are better."""
    before: float | None
    """The metric of the network that the run started from; of several widths, that of the widest."""
    after: float | None
    """The metric of what it made."""
    change: float | None
    """`after` against `before` in percent, positive for an improvement; None where there is nothing to divide by."""
    interval: tuple[float, float] | None = None
    """95 % interval of `change`, in percent; None where it is not known."""
    limit: str | None = None
    """How much it may lose, as the job says it."""
    within: bool | None = None
    """Whether the limit was kept; None without one."""


class ComparedRun(Result):
    """One run, or one named configuration of a network of several widths."""

    label: str
    """What the page calls it: a letter, and the configuration's name."""
    path: str
    """The folder or file that was given."""
    kind: Literal["run", "slim", "search"]
    """What wrote it."""
    title: str
    """What it is called."""
    passes: list[str]
    """The passes that made it, in order."""
    macs_before: float | None
    """MACs of one sample of the network that it started from."""
    macs: float | None
    """MACs of one sample."""
    parameters: int | None
    """Parameters; None where that is not known."""
    bytes: int | None
    """Size of its bundle, in bytes; of several widths that of all of them."""
    latency_ms: float | None
    """Median time of a call on `machine`, in ms; None where it was not measured."""
    speedup: float | None
    """How many times as fast it is as the network that it started from; None where that was not measured."""
    machine: str | None
    """The processor that measured `latency_ms`."""
    in_doubt: bool = False
    """Whether the times are in doubt."""
    delta_m: float | None
    """Mean change over the tasks, in percent."""
    delta_m_interval: IntervalResult | None = None
    """95 % interval of `delta_m`; None where it is not known."""
    split: str = "validation"
    """What the metrics were measured on."""
    tasks: dict[str, RunTask]
    """By task."""
    missed: list[str]
    """A line for each limit and budget that it did not keep."""


class JobDifference(Result):
    """A key of the jobs that is not the same in all of them."""

    key: str
    """Its path, such as ``passes.0.round_to``."""
    values: list[str | None]
    """By folder, in the order given, its value as text; None where the job does not have it, or is not known."""


class LayerWidths(Result):
    """How wide a layer is in each run."""

    name: str
    """Module path."""
    before: int | None
    """Output channels of the network that the first run with the layer started from."""
    after: list[int | None]
    """By run, in order, output channels; None where the run has no such layer, or does not say."""


class RunsComparison(Result):
    """Several runs side by side."""

    kind: Literal["runs"] = "runs"
    """Always ``runs``."""
    runs: list[ComparedRun]
    """In the order in which they were given."""
    differs: list[JobDifference]
    """Where their jobs differ."""
    widths: list[LayerWidths]
    """Layers that are not equally wide in all; empty where no run has layers."""
    notes: list[str]
    """What does not compare, and why."""
