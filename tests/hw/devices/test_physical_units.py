"""Units of figures: what they convert to, what is no unit of what, and what no device has."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlc.errors import UserError
from mtlc.hw.devices.physical_units import (
    BANDWIDTH,
    CLOCK,
    COUNT,
    DIMENSIONS,
    FLOAT_RATE,
    INTEGER_RATE,
    MEMORY,
    POWER,
    TIME,
    Dimension,
    base_unit,
    to_base,
)


@pytest.mark.parametrize(
    ("value", "unit", "expected", "base"),
    [
        (20, "TOPS", 10e12, "MAC/s"),  # two operations to a multiply–accumulate
        (900, "GOPS", 450e9, "MAC/s"),
        (989, "TFLOP/s", 494.5e12, "MAC/s"),
        (72, "GFLOP/s", 36e9, "MAC/s"),
        (36, "GMAC/s", 36e9, "MAC/s"),
        (3.35, "TB/s", 3.35e12, "B/s"),
        (5560, "MB/s", 5.56e9, "B/s"),
        (2, "GiB", 2147483648, "B"),
        (2, "GB", 2e9, "B"),
        (512, "KiB", 524288, "B"),
        (500, "mW", 0.5, "W"),
        (300, "MHz", 3e8, "Hz"),
        (2.5, "us", 2.5e-6, "s"),
        (1728, "count", 1728, "count"),
    ],
)
def test_units_by_hand(value: float, unit: str, expected: float, base: str) -> None:
    assert to_base(value, unit) == pytest.approx(expected, rel=1e-12)
    assert base_unit(unit) == base


UNITS = st.sampled_from([(dimension, unit) for dimension in DIMENSIONS for unit in dimension.units])


@given(UNITS, st.floats(1e-6, 1e12))
def test_conversion_there_and_back(of: tuple[Dimension, str], value: float) -> None:
    dimension, unit = of
    base = dimension.to_base(value, unit)
    assert to_base(value, unit) == base, "a unit means the same in every dimension that has it"
    assert base / dimension.to_base(1, unit) == pytest.approx(value, rel=1e-12)
    for other in dimension.units:  # through any other unit of the same dimension
        there = base / dimension.to_base(1, other)
        assert dimension.to_base(there, other) == pytest.approx(base, rel=1e-12)


@given(UNITS, st.floats(allow_nan=True, allow_infinity=True))
def test_only_numbers_within_the_bounds_pass(of: tuple[Dimension, str], value: float) -> None:
    dimension, unit = of
    fits = math.isfinite(value) and dimension.least <= value * dimension.units[unit] <= dimension.most
    with nullcontext() if fits and (not dimension.whole or value == int(value)) else pytest.raises(UserError):
        dimension.check(value, unit)


@pytest.mark.parametrize(
    ("dimension", "unit", "message"),
    [
        (BANDWIDTH, "GHz", "'GHz' is no unit of a bandwidth: write TB/s, GB/s, MB/s"),
        (BANDWIDTH, "GB", "'GB' is no unit of a bandwidth"),
        (BANDWIDTH, "Gb/s", "'Gb/s' is no unit of a bandwidth"),
        (CLOCK, "Mhz", "'Mhz' is no unit of a clock rate: write GHz, MHz"),
        (INTEGER_RATE, "TFLOP/s", "'TFLOP/s' is no unit of a rate of integer arithmetic: write TOPS"),
        (POWER, "J", "'J' is no unit of a power"),
    ],
)
def test_a_unit_of_something_else(dimension: Dimension, unit: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        dimension.to_base(1, unit)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("dimension", "value", "unit", "message"),
    [
        (BANDWIDTH, 0, "GB/s", "0 GB/s is no bandwidth: it must be a number above 0"),
        (POWER, -5, "W", "-5 W is no power: it must be a number above 0"),
        (TIME, math.nan, "us", "nan us is no time: it must be a number above 0"),
        (FLOAT_RATE, math.inf, "TOPS", "inf TOPS is no rate of floating-point arithmetic: it must be a number above 0"),
        (BANDWIDTH, 19200, "GB/s", "19200 GB/s is more than any device has (10 TB/s): check the number and its unit"),
        (MEMORY, 8, "B", "8 B is less than any device has (1 MB): check the number and its unit"),
        (COUNT, 2.5, "count", "2.5: a count is a whole number"),
    ],
)
def test_what_no_device_has(dimension: Dimension, value: float, unit: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        dimension.check(value, unit)
    assert str(caught.value) == message


def test_an_unknown_unit() -> None:
    with pytest.raises(UserError, match="unknown unit 'TOP'; did you mean 'TOPS'"):
        to_base(1, "TOP")
    with pytest.raises(UserError, match="unknown unit"):
        base_unit("furlong")
