"""Reads and writes what `mtlc slim` leaves as ``slim.json``: a slimmable network's configurations, their costs and
worth.

The page of widths is drawn from it. Every part may be absent, or None, in a file that another program or an earlier
version wrote: the page leaves out what it is not given.
"""

from __future__ import annotations

from pydantic import JsonValue

from mtlc.results.base import Result
from mtlc.results.tasks import IntervalResult, beats_constant, unlearned_words
from mtlc.results.train import Recipe


class TaskMetric(Result):
    """What a task is measured by."""

    metric: str
    """Name of the metric, such as ``miou``."""
    unit: str = ""
    """Unit of the metric, such as ``%``; empty where it has none."""
    higher_is_better: bool
    """Whether a larger value is a better one."""
    constant: float | None = None
    """The value of the best predictor that answers every sample alike, on the validation split; None where the metric
    says nothing of it, and in files of earlier versions."""


class WidthCosts(Result):
    """The range of what the network costs."""

    widest: int | float
    """MACs of one sample at full width, counted from shapes."""
    narrowest: int | float
    """MACs of one sample with every stage and decoder at its least width, counted from shapes."""


class SlimPoint(Result):
    """A configuration that has a name."""

    name: str
    """``default`` for the widest, ``low-power`` for the narrowest, else the budget as the job writes it."""
    encoder: dict[str, float]
    """Width of every encoder stage: the share of its channels that run."""
    decoders: dict[str, float]
    """Width of every task's decoder: the share of its channels that run."""
    macs: int | float
    """MACs of one sample, counted from shapes."""
    gain: float | None
    """Mean over the tasks of the relative change of the metric against the widest, measured on held-out data: 0.02 is 2
    % better.
    """
    metrics: dict[str, float | None] | None = None
    """Each task's metric on the held-out data that configurations are chosen on, measured, in the metric's unit."""
    validation: dict[str, float | None] | None = None
    """Each task's metric on the validation split, which takes part in no choice, measured, in the metric's unit."""
    delta_m: float | None = None
    """Mean relative change of the metrics against the widest on the validation split, measured, in percent."""
    delta_m_interval: IntervalResult | None = None
    """Where Δm lies in draws of the validation samples, in percent."""
    change_intervals: dict[str, IntervalResult] | None = None
    """Of each task whose metric says what samples add: where its change against the widest lies in such draws, in the
    metric's unit.
    """


class FrontPoint(Result):
    """A configuration of the bundle that no other of its configurations beats in both cost and worth."""

    macs: int | float
    """MACs of one sample, counted from shapes."""
    gain: float | None
    """Mean relative change of the metrics against the widest, measured on held-out data: 0.02 is 2 % better."""
    encoder: dict[str, float] | None = None
    """Width of every encoder stage."""
    decoders: dict[str, float] | None = None
    """Width of every task's decoder."""


class MeasuredPoint(Result):
    """A configuration that was measured, whether it is in the bundle or not."""

    macs: int | float
    """MACs of one sample, counted from shapes."""
    gain: float | None
    """Mean relative change of the metrics against the widest, measured on held-out data: 0.02 is 2 % better."""
    kind: str = "other"
    """``uniform``: one width for all stages and decoders. ``other``, or ``searched``: any other."""


class PreferencePoint(Result):
    """What the bundle chooses for one preference."""

    preference: float
    """Preference for the task, 0 to 1; the other tasks share the rest alike."""
    gain: float
    """Relative change of the task's metric against the widest, measured on held-out data: 0.02 is 2 % better."""
    metric: float | None = None
    """The task's metric on held-out data, measured, in the metric's unit."""


class Controllability(Result):
    """How far each task's metric moves as its preference goes from 0 to 1 at a fixed budget."""

    budget: int | float
    """The budget, in MACs of one sample."""
    share: float | None = None
    """The budget as a share of the widest configuration's MACs."""
    tasks: dict[str, list[PreferencePoint]]
    """For each task what is chosen as its preference rises."""
    range: dict[str, float | None] | None = None
    """For each task the largest change less the least, in percent points."""
    monotonicity: dict[str, float | None] | None = None
    """For each task Spearman's rank correlation of preference and change; None where nothing changes."""


class SlimBundle(Result):
    """The exported bundle of all widths."""

    path: str = "bundle"
    """Where it was written."""
    bytes: int | None = None
    """Its size, in bytes."""
    widest_bytes: int | None = None
    """The size of a bundle of the widest network alone, in bytes."""
    encoders: int | None = None
    """How many encoders it has; each runs with every width of each decoder."""
    programs: JsonValue = None
    """Its programs as the manifest names them; in some files their number."""
    verification: JsonValue = None
    """Largest absolute and relative difference (``max_abs``, ``max_rel``) to the trained network, by encoder, width,
    task and batch size.
    """


class WidthGroup(Result):
    """An encoder stage or a task's decoder: what has a width of its own."""

    options: list[float]
    """The widths that it has."""
    units: dict[str, list[int]]
    """For each group of channels in it the number of channels kept at each of `options`."""


class LeftAloneChannels(Result):
    """A group of channels that always runs whole."""

    name: str
    """The layer that it is named after."""
    channels: int
    """How many channels it has."""
    why: str
    """Why it has no width."""


class SlimTraining(Result):
    """The training of the widths together."""

    steps: int | None = None
    """Optimiser steps."""
    samples: int | None = None
    """Samples seen, each as often as it was."""
    seconds: float | None = None
    """Wall-clock time, in seconds."""
    losses: dict[str, float | None] | None = None
    """Running means of the losses at its end."""
    recipe: Recipe | None = None
    """Its epochs and learning rate, and where they are from."""


class SlimResult(Result):
    """What `mtlc slim` prints with ``--json`` and writes as ``slim.json``."""

    title: str | None = None
    """Title of the page."""
    tasks: dict[str, TaskMetric] | None = None
    """The tasks, and what each is measured by."""
    stages: list[str] | None = None
    """Names of the encoder's stages, in order."""
    widths: list[float] | None = None
    """The widths that were trained: shares of the channels."""
    cost: WidthCosts | None = None
    """MACs of the widest and the narrowest configuration."""
    reference: dict[str, float | None] | None = None
    """Each task's metric at full width on held-out data, measured, in the metric's unit."""
    points: list[SlimPoint] | None = None
    """The named configurations, the costliest first."""
    front: list[FrontPoint] | None = None
    """The best that the bundle has for each budget, with all tasks preferred alike, by cost."""
    measured: list[MeasuredPoint] | None = None
    """All configurations that were measured."""
    controllability: Controllability | None = None
    """How far each task can be steered."""
    single_task: dict[str, float | None] | None = None
    """Each task's metric with a network of its own, from the job's baselines; None where there are none."""
    bundle: SlimBundle | None = None
    """The exported bundle."""
    measurements: int | None = None
    """Networks that this call measured; 0 where all were measured before."""
    training: SlimTraining | None = None
    """The training of the widths."""
    groups: dict[str, WidthGroup] | None = None
    """By stage or task: the channels that each width keeps."""
    left_alone: list[LeftAloneChannels] | None = None
    """Channels that always run, and why."""
    versions: dict[str, str] | None = None
    """Versions of mtlc and torch."""
    job: JsonValue = None
    """The job's file name, seed and ``[slim]`` section; ``overrides`` is what was set over the file, if anything."""
    seconds: float | None = None
    """Wall-clock time of the whole call, in seconds."""

    def unlearned_warning(self) -> str | None:
        """That the widest network is no better than a constant predictor at some tasks, in a line; None if it is, and
        where that is not known. The widest is the first of the points.
        """
        widest = (self.points[0].validation or {}) if self.points else {}
        found = [
            (name, task.metric, task.unit, widest.get(name), task.constant)
            for name, task in (self.tasks or {}).items()
            if not beats_constant(widest.get(name), task.constant, task.higher_is_better)
        ]
        return f"{unlearned_words('widest', found)}; changes against it and Δm say nothing" if found else None
