"""What is expected of a unit follows from its earlier trials, and only says where a search begins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlc.compress.pagcp.expected_growth import ExpectedGrowth
from mtlc.compress.pagcp.sweep import _from

COUNTS = [56, 48, 40, 32, 24, 16, 8]


@pytest.fixture
def known() -> ExpectedGrowth:
    """With 32 of 64 channels the loss of `a` is four times what it was, that of `b` the same."""
    expected = ExpectedGrowth()
    expected.note("unit", 64, 32, {"a": 1.0, "b": 2.0}, {"a": 4.0, "b": 2.0})
    return expected


@pytest.mark.parametrize(
    ("limit", "begin", "task"),
    [
        (1.1, 0, "a"),  # 56 channels: 4^(1/4) is 41 % more, more than twice what is allowed
        (1.3, 0, None),  # still too much, but not so sure
        (1.5, 0, None),
        (2.0, 1, None),  # 48 channels: twice
        (4.5, 3, None),
        (17.0, 6, None),  # 0 channels would be 16 times: the line goes on
    ],
)
def test_between_what_was_tried_growth_is_a_power(known, limit, begin, task):
    assert known.begin("unit", 64, COUNTS, {"a": 1.0, "b": 2.0}, {"a": limit, "b": 9.0}) == (begin, task)


def test_a_narrower_unit_starts_from_what_it_has(known):
    """From 48 channels, to 32 it is twice."""
    assert known.begin("unit", 48, COUNTS[2:], {"a": 2.0, "b": 2.0}, {"a": 4.0, "b": 9.0}) == (1, None)


def test_without_a_trial_or_with_channels_given_back_nothing_is_known(known):
    losses, limits = {"a": 1.0, "b": 2.0}, {"a": 2.0, "b": 9.0}
    assert known.begin("other", 64, COUNTS, losses, limits) == (None, None)
    assert known.begin("unit", 72, COUNTS, losses, limits) == (None, None)


def test_a_trial_that_takes_nothing_tells_nothing(known):
    """Of two heads, a quarter is none."""
    alone = ExpectedGrowth()
    alone.note("unit", 2, 2, {"a": 1.0}, {"a": 1.0})
    assert alone.begin("unit", 2, [1], {"a": 1.0}, {"a": 2.0}) == (None, None)
    known.note("unit", 64, 64, {"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0})
    assert known.begin("unit", 64, COUNTS, {"a": 1.0, "b": 2.0}, {"a": 2.0, "b": 9.0}) == (1, None)


def test_a_loss_of_zero_that_stays_zero_is_no_growth():
    expected = ExpectedGrowth()
    expected.note("unit", 64, 32, {"a": 0.0}, {"a": 0.0})
    assert expected.begin("unit", 64, COUNTS, {"a": 0.0}, {"a": 0.0}) == (6, None)
    expected.note("unit", 64, 32, {"a": 0.0}, {"a": 0.1})
    assert expected.begin("unit", 64, COUNTS, {"a": 0.0}, {"a": 0.0}) == (0, "a")


@given(st.integers(1, 24).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1), st.integers(0, n))))
def test_a_search_from_anywhere_ends_where_the_limits_do(case):
    count, begin, first = case
    asked: list[int] = []

    def passes(index: int) -> bool:
        asked.append(index)
        return index < first

    assert _from(begin, count, passes) == first - 1
    assert len(asked) == len(set(asked))
    if begin == first - 1:
        assert len(asked) <= 2
