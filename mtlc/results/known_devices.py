"""Describes what ``mtlc devices`` knows of a device, and what ``mtlc calibrate`` measured of this one."""

from __future__ import annotations

from mtlc.results.base import Result


class DeviceFigure(Result):
    """One number of a device."""

    value: int | float
    """The number as it is written."""
    unit: str
    """Its unit."""
    base: int | float
    """The number in the base unit."""
    base_unit: str
    """MAC/s, B/s, B, W, Hz, s or count."""
    source: str
    """Where the number is from."""
    confidence: str
    """How far it is to be trusted: ``datasheet``, ``vendor``, ``measured``, ``derived``, ``secondary`` or
    ``unconfirmed``."""
    note: str | None = None
    """What else is to be known of it."""
    spread: float | None = None
    """(p90 − p10) / median of a measured one."""


class KnownDevice(Result):
    """A device by its figures."""

    name: str
    """What it is called."""
    title: str
    """Its name for people."""
    kind: str | None
    """``cpu``, ``gpu``, ``npu`` or ``fpga``; None where it is not said."""
    local: bool
    """Whether it is this machine: it is measured, not modelled."""
    backend: str | None
    """What a local one is measured through."""
    roofline: str | None
    """The class of devices whose fitted efficiencies hold for it; None where it cannot be modelled."""
    notes: str
    """What else is to be known."""
    origin: str | None
    """The file that it was read from."""
    measured_on: dict[str, str | int | float | None]
    """Where and when its figures were measured."""
    reach: dict[str, str] | None = None
    """Where a board of this kind is, ``ssh``, and in which ``folder`` there things are kept; None where none is."""
    figures: dict[str, DeviceFigure]
    """Figures by key, such as ``memory.bandwidth`` or ``peak.int8.dense``."""


class CalibrationResult(Result):
    """What this machine can do, as it was measured."""

    path: str
    """The device file that was written."""
    device: KnownDevice
    """What is in it."""
    missing: dict[str, str]
    """Why a figure was not measured, by its key."""
    doubts: list[str]
    """Why the figures may be too low, a line each."""
