"""Describes what ``mtlc trace`` recorded: where tokens go in a mixture of experts, and what that costs."""

from __future__ import annotations

from mtlc.results.base import Result
from mtlc.results.routing import RoutedLayer, RoutedTask


class TraceResult(Result):
    """A network as its routers sent the samples of a trace."""

    kind: str
    """How the routing is known: ``measured``."""
    source: str
    """Where the trace is from."""
    path: str | None
    """File that the trace was written to; None where it was not."""
    samples: dict[str, int]
    """Number of samples by task."""
    macs: int
    """Multiply–accumulates of a sample that runs all tasks, with every place filled: modelled."""
    active_macs: float
    """Multiply–accumulates of such a sample as routed."""
    tasks: dict[str, RoutedTask]
    """Each task alone."""
    layers: list[RoutedLayer]
    """The layers of experts."""
