"""Converts the units that figures of devices are written in, and knows the dimensions that they measure.

A multiply–accumulate is two operations: 1 TOPS, like 1 TFLOP/s, is 0.5 TMAC/s. Prefixes are decimal, but for KiB, MiB
and GiB. The spelling is exact: ``Gb/s`` or ``gb/s`` is no ``GB/s``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mtlc.errors import UserError, nearest

MACS_PER_OPERATION = 0.5


@dataclass(frozen=True)
class Dimension:
    """What a figure measures: its units by name, each as a multiple of `base`, and what is plausible in `base`."""

    name: str
    base: str
    units: Mapping[str, float]
    least: float
    most: float
    whole: bool = False

    def to_base(self, value: float, unit: str) -> float:
        """`value` in `base` units. Raises `UserError` if `unit` is not one of this dimension."""
        if unit not in self.units:
            known = ", ".join(self.units)
            raise UserError(f"{unit!r} is no unit of {self.name}: write {known}")
        return value * self.units[unit]

    def check(self, value: float, unit: str) -> None:
        """Refuse a number that no device has. Raises `UserError` that says what to look at."""
        base = self.to_base(value, unit)
        if not math.isfinite(value) or value <= 0:
            raise UserError(f"{value:g} {unit} is no {self.name.removeprefix('a ')}: it must be a number above 0")
        if self.whole and value != int(value):
            raise UserError(f"{value:g}: {self.name} is a whole number")
        if not self.least <= base <= self.most:
            bound, word = (self.least, "less") if base < self.least else (self.most, "more")
            raise UserError(
                f"{value:g} {unit} is {word} than any device has ({self.shown(bound)}): check the number and its unit"
            )

    def shown(self, base: float) -> str:
        """`base` in the largest unit of which it is one or more."""
        fitting = [(factor, unit) for unit, factor in self.units.items() if factor <= base * (1 + 1e-9)]
        factor, unit = max(fitting) if fitting else min((factor, unit) for unit, factor in self.units.items())
        return f"{base / factor:.4g} {unit}"


_MACS = {"TMAC/s": 1e12, "GMAC/s": 1e9, "MMAC/s": 1e6, "MAC/s": 1.0}
_OPERATIONS = {"TOPS": 1e12 * MACS_PER_OPERATION, "GOPS": 1e9 * MACS_PER_OPERATION}
_FLOPS = {"TFLOP/s": 1e12 * MACS_PER_OPERATION, "GFLOP/s": 1e9 * MACS_PER_OPERATION}
_BYTES = {"GiB": 2.0**30, "MiB": 2.0**20, "KiB": 2.0**10, "GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1.0}

INTEGER_RATE = Dimension("a rate of integer arithmetic", "MAC/s", {**_OPERATIONS, **_MACS}, 1e6, 1e16)
FLOAT_RATE = Dimension("a rate of floating-point arithmetic", "MAC/s", {**_FLOPS, **_OPERATIONS, **_MACS}, 1e6, 1e16)
BANDWIDTH = Dimension("a bandwidth", "B/s", {"TB/s": 1e12, "GB/s": 1e9, "MB/s": 1e6}, 1e7, 1e13)
MEMORY = Dimension("a memory size", "B", _BYTES, 1e6, 1e13)
ON_CHIP = Dimension("an on-chip memory size", "B", _BYTES, 1e3, 1e11)
POWER = Dimension("a power", "W", {"kW": 1e3, "W": 1.0, "mW": 1e-3}, 1e-3, 1e4)
CLOCK = Dimension("a clock rate", "Hz", {"GHz": 1e9, "MHz": 1e6}, 1e6, 1e10)
TIME = Dimension("a time", "s", {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}, 1e-9, 1.0)
COUNT = Dimension("a count", "count", {"count": 1.0}, 1.0, 1e8, whole=True)

DIMENSIONS = (INTEGER_RATE, FLOAT_RATE, BANDWIDTH, MEMORY, ON_CHIP, POWER, CLOCK, TIME, COUNT)
_FACTORS = {unit: factor for dimension in DIMENSIONS for unit, factor in dimension.units.items()}
_BASES = {unit: dimension.base for dimension in DIMENSIONS for unit in dimension.units}


def to_base(value: float, unit: str) -> float:
    """`value` in MAC/s, B/s, B, W, Hz, s or as a count: a unit belongs to one of them. Raises `UserError`."""
    if unit not in _FACTORS:
        raise UserError(f"unknown unit {unit!r}{nearest(unit, _FACTORS)}")
    return value * _FACTORS[unit]


def base_unit(unit: str) -> str:
    """What `to_base` gives for `unit`: ``MAC/s`` for ``TOPS``."""
    if unit not in _BASES:
        raise UserError(f"unknown unit {unit!r}{nearest(unit, _BASES)}")
    return _BASES[unit]
