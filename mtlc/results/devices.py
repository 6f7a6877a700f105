"""Describes what both networks take on each device of the report, measured on this machine and modelled elsewhere."""

from __future__ import annotations

from pydantic import Field

from mtlc.results.base import Result


class ModelError(Result):
    """How far modelled times are off on what the fit did not see, as shares of the measured time."""

    median: float
    """The error that half of them exceed."""
    p90: float
    """The error that one in ten exceeds."""
    held_out: str
    """What was held out of the fit: ``networks`` or ``boards``."""


class DeviceLayer(Result):
    """A layer of the compressed network on a device."""

    name: str
    """Module path."""
    ms: float
    """Its time, in ms."""
    bound: str | None = None
    """What it waits for: ``compute``, ``memory`` or ``launch``; None where the device's rates are not known."""
    kernel: str | None = None
    """Kind of its main kernel, where it was modelled."""
    intensity: float | None = None
    """Multiply–accumulates for each byte that passes the memory; None where no byte does."""
    rate: float
    """Multiply–accumulates per second."""


class DeviceResult(Result):
    """One inference before and after on one device."""

    device: str
    """Name of the device."""
    title: str
    """Its name for people."""
    kind: str
    """``measured`` or ``modelled``."""
    what: str | None = None
    """What the time is of: ``latency``, or what the published times of the fit were of."""
    precision: str
    """Numbers that it computes with, such as ``fp32``."""
    device_class: str | None = Field(default=None, alias="class")
    """The class of devices whose efficiencies the model takes; only where it was modelled."""
    error: ModelError | None = None
    """How far a modelled time may be off; None for a measured one, and where it was not tried."""
    peak: float | None = None
    """Most multiply–accumulates per second."""
    bandwidth: float | None = None
    """Bytes per second that the memory was seen to reach."""
    peak_bandwidth: float | None = None
    """Bytes per second that the memory could reach."""
    ceilings: dict[str, float] = {}
    """Multiply–accumulates per second that the fit says are reached, by kind of kernel."""
    before_ms: float | None
    """The original network, in ms."""
    after_ms: float | None
    """The compressed network, in ms."""
    speedup: float | None
    """before / after."""
    run_ms: float | None = None
    """What every inference costs whatever it computes, in ms; of a modelled time."""
    bounds: dict[str, float] | None = None
    """Shares of the time by what it waits for: ``compute``, ``memory``, ``launch``."""
    layers: list[DeviceLayer] = []
    """The layers of the compressed network."""
    outside_fit: str | None = None
    """``smaller`` or ``larger`` where the network is so against all networks of the fit; None if it is not."""
    notes: list[str] = []
    """What else is to be known, a line each."""
