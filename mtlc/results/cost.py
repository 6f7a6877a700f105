"""Describes what a network costs before and after compression, by layer and in all, and the budget."""

from __future__ import annotations

from typing import Literal

from mtlc.results.base import Result


class AssumedOperator(Result):
    """An operator that mtlc has no rule for: that it multiplies nothing is taken for granted."""

    operator: str
    """Its name."""
    kind: str
    """What it is taken for, by the shapes that go in and come out, such as ``elementwise`` or ``copy``."""
    layers: list[str]
    """The paths of the modules that run it; an empty one is the network itself."""

    def line(self) -> str:
        """The same in a line."""
        places = ", ".join(layer or "the network's forward" for layer in self.layers[:3])
        more = f" and {len(self.layers) - 3} more" if len(self.layers) > 3 else ""
        return f"{self.operator} ({self.kind}) counts no MACs, in {places}{more}"


class Cost(Result):
    """What one sample costs: modelled from shapes, but active MACs and the bytes of the bundle are measured."""

    macs: int | None = None
    """Multiply–accumulates, with every place of the experts filled."""
    active_macs: float | None = None
    """Multiply–accumulates as the routers sent the calibration samples; None without a mixture of experts."""
    parameters: int | None = None
    """Number of parameters."""
    peak_activation_bytes: int | None = None
    """Most memory that activations take at a time, in bytes."""
    bundle_bytes: int | None = None
    """Size of the bundle on disk, in bytes."""
    macs_of_all_tasks: int | None = None
    """Multiply–accumulates with the tasks that compression dropped; only of the original network, and if some were."""


class CostPair(Result):
    """The costs of both networks, running the tasks that the compressed one has."""

    before: Cost = Cost()
    """The original network."""
    after: Cost = Cost()
    """The compressed network."""


class BudgetResult(Result):
    """The budget, and what was reached: MACs, parameters, or ms on a device, by `kind`."""

    kind: Literal["macs", "params", "latency"]
    """What the budget limits."""
    device: str | None = None
    """The device of a latency; None for the others."""
    original: float
    """What the original network costs."""
    target: float
    """The most that was asked for."""
    reached: float
    """What the compressed network costs."""
    met: bool = True
    """Whether `reached` is at most `target`."""
    missed: str | None = None
    """Why it was not met, in a line; None if it was."""


class LayerPair(Result):
    """A layer that multiplies, before and after. All of a side is None where that network does not have the layer."""

    name: str
    """Module path; empty for the network itself."""
    kind: str | None = None
    """Kind of the layer, such as ``conv`` or ``linear``."""
    channels_before: int | None = None
    """Output channels of the original layer; None where it has none."""
    macs_before: int | None = None
    """Multiply–accumulates of the original layer for one sample."""
    params_before: int | None = None
    """Parameters of the original layer."""
    channels_after: int | None = None
    """Output channels of the compressed layer."""
    macs_after: int | None = None
    """Multiply–accumulates of the compressed layer for one sample."""
    params_after: int | None = None
    """Parameters of the compressed layer."""
    bytes_before: int | None = None
    """Bytes that the original layer reads and writes for one sample, weights included. Left out in files of earlier
    versions."""
    bytes_after: int | None = None
    """The same of the compressed layer."""
