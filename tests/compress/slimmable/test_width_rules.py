"""Which channels a width keeps, and which sets of widths are none."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlc.compress.passes.slim import SlimConfig
from mtlc.compress.slimmable.configuration import Configuration, checked_widths, kept_channels, step_of
from mtlc.errors import UserError

some_widths = st.floats(0.01, 1.0)


@given(st.integers(1, 2048), some_widths, st.integers(1, 32))
def test_kept_channels_are_multiples_and_never_too_few(channels, width, multiple):
    kept = kept_channels(channels, width, multiple)
    assert kept % multiple == 0 or kept == channels
    assert 0 < kept <= channels
    assert kept >= 0.9 * width * channels


@given(st.integers(1, 2048), some_widths, some_widths, st.integers(1, 32))
def test_a_wider_width_never_keeps_fewer(channels, one, other, multiple):
    narrow, wide = sorted((one, other))
    assert kept_channels(channels, narrow, multiple) <= kept_channels(channels, wide, multiple)


@given(st.integers(1, 2048), st.integers(1, 32))
def test_the_widest_keeps_every_channel(channels, multiple):
    assert kept_channels(channels, 1.0, multiple) == channels


@pytest.mark.parametrize(
    ("channels", "width", "kept"),
    [
        (64, 0.25, 16), (64, 0.5, 32), (24, 0.25, 8), (24, 0.5, 16), (96, 0.75, 72),
        (36, 0.25, 16),  # 9 asked for: 8 would be 89 % of that
        (35, 0.25, 8),  # 8.75 asked for: 8 are 91 %
        (90, 1.0, 90), (4, 0.25, 4),
    ],
)  # fmt: skip
def test_rounding_by_hand(channels, width, kept):
    assert kept_channels(channels, width, 8) == kept


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 32))
def test_a_step_of_whole_heads_or_groups(width, multiple, round_to):
    step = step_of(width, multiple, round_to)
    assert step % multiple == 0
    if width < round_to:
        assert step * width % round_to == 0
        assert step == math.lcm(multiple, round_to // math.gcd(round_to, width))
    else:
        assert step == multiple


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((0.25, 0.5), "widths: 0.25, 0.5 lacks 1.0: the widest network is what the others learn from"),
        ((0.5, 1.0, 0.5), "widths: 0.5, 0.5, 1 names a width twice"),
        ((0.0, 1.0), "widths: 0 must be above 0 and at most 1"),
        ((-0.5, 1.0), "widths: -0.5 must be above 0 and at most 1"),
        ((0.5, 1.0, 1.5), "widths: 1.5 must be above 0 and at most 1"),
        ((1.0,), "widths: 1.0 alone leaves nothing to choose; add a narrower one"),
    ],
)
def test_width_sets_that_are_none(widths, message):
    for read in (checked_widths, lambda given: SlimConfig(widths=given)):
        with pytest.raises(UserError) as caught:
            read(widths)
        assert str(caught.value) == message


def test_widths_rise_whatever_order_they_come_in():
    assert checked_widths((1.0, 0.25, 0.5)) == (0.25, 0.5, 1.0)
    assert SlimConfig(widths=(1.0, 0.25)).widths == (0.25, 1.0)


def test_a_configuration_reads_as_a_line():
    configuration = Configuration((0.25, 1.0), (0.5, 0.75))
    assert str(configuration) == "encoder 0.25 1, decoders 0.5 0.75"
    assert configuration.decoder_of(("depth", "semseg")) == {"depth": 0.5, "semseg": 0.75}
