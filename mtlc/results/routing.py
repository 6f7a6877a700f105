"""Describes where the tokens of a mixture of experts go, and which experts an extraction kept."""

from __future__ import annotations

from typing import Any

from mtlc.results.base import Result
from mtlc.results.masked_comparison import MaskedComparison


class RoutedTask(Result):
    """What one sample costs for one task alone."""

    macs: int
    """Multiply–accumulates with every place filled."""
    active_macs: float
    """Multiply–accumulates as routed."""


class TokensOfTask(Result):
    """Where the tokens of one task go at one layer."""

    tokens_per_expert: list[float]
    """Tokens of a sample that each expert gets: the mean over the samples."""
    busiest: float
    """Share of the filled places that the busiest expert has."""
    active_macs: float
    """Multiply–accumulates of the layer's experts for a sample, as routed."""


class RoutedLayer(Result):
    """A layer of experts."""

    layer: str
    """Module path."""
    experts: int
    """Experts that the original layer had."""
    present: list[int]
    """Those that the layer has, by their number in the original one."""
    top_k: int
    """Places of a token."""
    tokens: int
    """Tokens of a sample."""
    macs_per_place: int
    """Multiply–accumulates of one filled place."""
    full_macs: int
    """Multiply–accumulates of a sample with every place filled."""
    tasks: dict[str, TokensOfTask]
    """By task."""


class RoutedNetwork(Result):
    """One network as its routers sent the samples."""

    macs: int
    """Multiply–accumulates of a sample that runs all tasks, with every place filled."""
    active_macs: float
    """Multiply–accumulates of such a sample as routed."""
    tasks: dict[str, RoutedTask]
    """Each task alone."""
    layers: list[RoutedLayer]
    """The layers of experts."""


class RoutingResult(Result):
    """Where the tokens go before and after compression."""

    kind: str
    """How the routing is known: ``measured``."""
    split: str
    """The split whose samples were routed."""
    samples: int
    """Number of these samples."""
    before: RoutedNetwork | None = None
    """The original network."""
    after: RoutedNetwork | None = None
    """The compressed network; None where no experts are left in it."""


class ExpertUse(Result):
    """How one task used the experts of a layer on the calibration split, before the extraction."""

    usage: list[float]
    """Share of the task's tokens that go to each expert."""
    coverage: float
    """Share of its routed scores that goes to experts that stay."""
    hit_dropped: float
    """Share of its tokens that go to an expert that does not."""


class KeptLayer(Result):
    """A layer of experts after an extraction."""

    layer: str
    """Module path."""
    experts: int
    """Experts before."""
    top_k: int | None = None
    """Places of a token."""
    kept: list[int]
    """Experts that stayed."""
    groups: list[list[int]] | None = None
    """Experts that were merged into one, group by group; None where none were."""
    tasks: dict[str, ExpertUse]
    """By task."""


class ParametersPair(Result):
    """Numbers of parameters."""

    before: int
    """Before the extraction."""
    after: int
    """After it."""


class ActiveMacsPair(Result):
    """Multiply–accumulates of a sample, as routed on the calibration split."""

    kind: str
    """How they are known: ``measured``."""
    before: float
    """Before the extraction."""
    after: float
    """After it."""


class ExpertsResult(Result):
    """What the pass ``extract`` took out."""

    tasks: list[str]
    """Tasks that stayed."""
    dropped_tasks: list[str] = []
    """Tasks that went."""
    by: str | None = None
    """What experts were chosen by, as the pass was configured."""
    threshold: float | None = None
    """Share of a task's tokens below which an expert went; None where experts were chosen otherwise."""
    handle: str | None = None
    """What became of the experts that went: ``drop`` or ``merge``."""
    reroute: bool | None = None
    """Whether tokens of a gone expert go to the next best one."""
    samples: int | None = None
    """Calibration samples that the use was counted on."""
    layers: list[KeptLayer] = []
    """The layers of experts."""
    exact: list[str] = []
    """What of the result is exact, a line each."""
    approximate: list[str] = []
    """What is approximate, a line each."""
    notes: list[str] = []
    """What else is to be known, a line each."""
    compared: MaskedComparison | None = None
    """How far the network is from the original with the same experts masked."""
    params: ParametersPair | None = None
    """Parameters before and after."""
    active_macs: ActiveMacsPair | None = None
    """Multiply–accumulates as routed, before and after."""
    calibration: dict[str, Any] | None = None
    """The pass's own evaluations on the calibration split, by stage."""
    broken_limits: list[str] | None = None
    """A line for each limit that the calibration split says is broken."""
    training: dict[str, Any] | None = None
    """The trainer's own report; None where nothing was trained."""
    missed: str | None = None
    """What the pass could not reach, in a line."""
