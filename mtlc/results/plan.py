"""Describes what `mtlc plan` says: the job in full, what its network costs and what its passes can reach."""

from __future__ import annotations

from typing import Any, Literal

from mtlc.results.base import Result
from mtlc.results.cost import AssumedOperator
from mtlc.results.tasks import LabelledSamples, beats_constant


class PlannedLimit(Result):
    """How much a task may lose."""

    value: float
    """The metric's loss: a share of its value before where `relative`, else in the metric's unit."""
    relative: bool
    """Whether `value` is a share."""
    confidence: float | None = None
    """The share of draws from the validation samples in which it must be kept too. Left out where none is asked for."""


class PlannedTask(Result):
    """A task of the job, as it will be trained and judged."""

    name: str
    """The task's name in the job."""
    loss: str
    """The loss, by name or as ``module:callable``."""
    metric: str
    """The metric, by name or as ``module:callable``."""
    output: str | None
    """The network's output that is the task's; None: the one of its name."""
    target: str | None
    """The key of a sample that holds the labels; None: the task's name."""
    weight: float
    """What the task's loss counts in the sum over the tasks."""
    max_drop: PlannedLimit | None
    """How much of its metric the task may lose; None: no limit."""
    loss_args: dict[str, Any]
    """Settings of the loss."""
    metric_args: dict[str, Any]
    """Settings of the metric."""
    unit: str
    """The metric's unit."""
    ignore: int | None = None
    """The label that counts neither in the loss nor in the metric. Left out where the job leaves it to them."""
    original: float | None = None
    """The metric of the original network on the first samples of the validation split. Left out where its weights are
    not there yet."""
    constant: float | None = None
    """That of the best predictor that answers every sample alike, on the same samples; None where the metric says
    nothing of it. Left out with `original`."""
    higher_is_better: bool | None = None
    """Whether a larger metric is a better one. Left out with `original`."""
    samples: LabelledSamples | None = None
    """How many samples of each split have a label of it."""

    def learned(self) -> bool:
        """Whether the original network is better at it than a constant predictor; True where that is not known."""
        return beats_constant(self.original, self.constant, bool(self.higher_is_better))


class TrainingOnlyTask(Result):
    """A task whose output exists in training mode only: it is trained with, and is neither judged nor exported."""

    name: str
    """The task's name in the job."""
    loss: str
    """The loss, by name or as ``module:callable``."""
    output: str
    """The network's output in training mode that is the task's."""
    target: str
    """The key of a sample that holds the labels."""
    weight: float
    """What the task's loss counts in the sum over the tasks."""


class PlannedData(Result):
    """How many samples the three splits have."""

    train: int
    """Samples to train on."""
    calibration: int
    """Samples that passes measure and choose on."""
    validation: int
    """Samples that judge the result."""


class PlannedWeights(Result):
    """The file of weights that the job starts from."""

    path: str
    """Where it lies."""
    exists: bool
    """Whether it is there; if not, the plan is that of a network with fresh weights."""


class PlannedCost(Result):
    """What the original network costs."""

    kind: Literal["modelled"]
    """Counted from the network's operators, not measured."""
    macs: int
    """Multiply-accumulates of one sample."""
    params: int
    """Parameters."""


class PlannedLayer(Result):
    """What one layer of the original network costs."""

    name: str
    """The layer's path in the network; empty for operators in the forward of the network itself."""
    kind: str
    """The operator that does most of its work."""
    macs: int
    """Multiply-accumulates of one sample."""
    parameters: int
    """Parameters."""
    parameter_bytes: int
    """Bytes of the parameters."""
    input_shapes: list[list[int]]
    """The shapes of what goes in."""
    output_shape: list[int]
    """The shape of what comes out."""
    activation_bytes: int
    """Bytes of what comes out."""


class PlannedPass(Result):
    """A pass of the job with all its settings."""

    name: str
    """Which pass."""
    config: dict[str, Any]
    """Its settings, those that the job leaves out at their defaults."""
    where: str
    """Where it stands in the job file."""
    plan: dict[str, Any] = {}
    """What the pass says of its own that it would do. Left out by a pass that says nothing."""


class PlannedExperts(Result):
    """What a pass would choose from that leaves experts out."""

    class Layer(Result):
        """A layer of experts."""

        layer: str
        """Its path in the network."""
        experts: int
        """How many experts it has."""
        top_k: int
        """How many experts a token goes to."""
        keeps: int
        """How many experts stay whatever happens."""

    tasks: list[str]
    """The tasks that stay."""
    layers: list[Layer]
    """The layers of experts, in the order of the network."""


class LeastCost(Result):
    """The cost with everything gone that a pass may take."""

    macs: int
    """Multiply-accumulates of one sample."""
    params: int
    """Parameters."""


class PlannedChannels(Result):
    """What a pass would choose from that leaves channels out."""

    class Group(Result):
        """Channels of one or more layers that can only go together."""

        name: str
        """The group, called after its first layer."""
        channels: int
        """How many channels it has."""
        narrowest: int
        """How many channels stay whatever happens."""

    class LeftAlone(Result):
        """Channels that stay, all of them."""

        name: str
        """The layer."""
        channels: int
        """How many channels it has."""
        why: str
        """The reason."""

    prunable: list[Group]
    """The groups that can be made narrower."""
    left_alone: list[LeftAlone]
    """What cannot."""
    least: LeastCost
    """The cost with every group at its narrowest. A task's limit usually stops a pass before."""


class PlannedBudget(Result):
    """The job's budget in absolute numbers."""

    kind: Literal["macs", "params", "latency"]
    """What is limited: multiply-accumulates of one sample, parameters, or milliseconds of one sample."""
    target: float
    """The limit, in the unit of `kind`."""
    device: str | None
    """Where a latency is measured."""
    original: int | None
    """What the original network costs; None for a latency."""
    least: int | None
    """The least that the job's passes can reach; None where that shows only as they run."""
    reachable: bool | None
    """Whether `least` is within the budget; None where `least` is."""
    met_already: bool | None
    """Whether the original network is within the budget; None for a latency."""


class Plan(Result):
    """What a run of the job would do."""

    job: str
    """The job file."""
    overrides: dict[str, Any] | None = None
    """What was set over the job's file, by key in dots. Left out where nothing was."""
    tasks: list[PlannedTask]
    """The tasks, in the network's order."""
    training_only: list[TrainingOnlyTask] = []
    """Tasks that exist in training only. Left out where there are none."""
    data: PlannedData
    """The sizes of the splits."""
    weights: PlannedWeights | None
    """The weights to start from; None: those that the factory gives."""
    cost: PlannedCost
    """What the original network costs."""
    layers: list[PlannedLayer]
    """The same by layer, in the order in which they run."""
    assumed: list[AssumedOperator] = []
    """Operators without a rule, which are counted as if they multiplied nothing. Left out where there are none."""
    passes: list[PlannedPass]
    """The passes, in the order in which they run."""
    export: dict[str, Any]
    """The job's section `[export]`, with its defaults."""
    report: dict[str, Any]
    """The job's section `[report]`, with its defaults."""
    experts: PlannedExperts | None = None
    """What the last pass that leaves out experts would choose from. Left out where no pass does."""
    units: PlannedChannels | None = None
    """What the first pass that removes channels would choose from. Left out where none does.

    A job with a budget and no pass that could meet it shows what pruning with its default settings could.
    """
    budget: PlannedBudget | None = None
    """The budget beside what the network costs and what its passes can reach. Left out without one."""
    advice: list[str] = []
    """What speaks against the job's pruning as it is set, in lines. Left out where nothing does."""
