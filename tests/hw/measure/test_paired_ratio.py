"""The one statistic of how many times as fast one network is, by hand, and what makes it doubtful."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlc.hw.measure.paired_ratio import interval_of_median, is_narrow, paired_ratio
from mtlc.results.latency import BundleLatency, LatencyResult, Ratio, contradiction, said_doubts


def test_a_ratio_by_hand() -> None:
    found = paired_ratio([2.0, 4.0, 6.0, 8.0, 10.0], [1.0, 2.0, 3.0, 4.0, 5.0], [3.0] * 5, [1.0, 2.0, 3.0, 1.5, 1.0])
    assert found == {"median": 2.0, "p10": 2.0, "p90": 2.0, "low": 2.0, "high": 2.0, "cpu": 2.0, "doubt": None}


def test_rounds_that_were_disturbed_contradict_the_medians() -> None:
    """Bursts of load met 2 of 5 rounds of the first and 2 others of the second: medians say 4x, the rounds 1.6x."""
    first, other = [8.0, 8.0, 8.0, 3.2, 3.2], [8.0, 5.0, 2.0, 2.0, 2.0]
    found = paired_ratio(first, other)
    assert (found["median"], found["cpu"]) == (1.6, None)
    assert found["doubt"] == "the medians of the times would say 4.00x, the rounds say 1.60x"


def test_a_clock_too_coarse_for_the_call_gives_no_ratio_of_processor_times() -> None:
    assert paired_ratio([2.0, 2.0], [1.0, 1.0], [15.6, 0.0], [0.0, 0.0])["cpu"] is None


@pytest.mark.parametrize(
    ("count", "ranks"),
    # n/2 ± 0.98 √n by hand; of few values the least and the largest.
    [(2, (1, 2)), (5, (1, 5)), (10, (1, 10)), (50, (18, 33)), (100, (40, 61)), (400, (180, 221))],
)
def test_ranks_of_the_interval(count: int, ranks: tuple[int, int]) -> None:
    values = list(range(1, count + 1))
    assert interval_of_median(values[::-1]) == ranks


def test_the_interval_holds_the_median_in_19_of_20_cases() -> None:
    rng = np.random.default_rng(0)
    held = [low <= 1.0 <= high for low, high in (interval_of_median(rng.lognormal(0, 0.3, 50)) for _ in range(2000))]
    assert 0.95 <= np.mean(held) <= 0.98


@given(st.lists(st.floats(0.01, 1e3), min_size=2, max_size=60))
def test_the_interval_is_around_the_median(values: list[float]) -> None:
    low, high = interval_of_median(values)
    assert min(values) <= low <= np.median(values) <= high <= max(values)


def test_what_is_wide_and_what_is_spread() -> None:
    assert is_narrow([1.0, 1.05, 1.1])
    assert not is_narrow([1.0, 1.05, 1.2])
    wide = paired_ratio([1.0, 1.2, 1.4], [1.0] * 3)
    assert wide["doubt"] == "after 3 rounds the ratio lies between 1.00x and 1.40x"
    # The median is known well, but a fifth of the rounds say less than half.
    ratios = [0.9] * 20 + [2.0] * 80
    assert paired_ratio(ratios, [1.0] * 100)["doubt"] == (
        "the rounds differ: one in ten is below 0.90x, one in ten above 2.00x"
    )


def test_the_doubts_of_a_measurement_name_what_they_are_of() -> None:
    sound, unsure = Ratio(median=2, p10=2, p90=2), Ratio(median=2, p10=1, p90=3, doubt="the rounds differ")
    assert said_doubts(["busy"], {"a": sound, "b": unsure}) == ["busy", "b: the rounds differ"]


def test_results_of_an_earlier_version_are_held_against_their_own_medians() -> None:
    """What was printed once: ×1.60 beside 9.51 → 2.268 ms."""

    def made(after: float) -> LatencyResult:
        sides = {"before": BundleLatency(median_ms=9.51), "after": BundleLatency(median_ms=after)}
        return LatencyResult(speedup=1.6, **sides)

    assert made(2.268).why_in_doubt() == ["the medians of the times would say 4.19x, the rounds say 1.60x"]
    assert made(5.9).why_in_doubt() == LatencyResult().why_in_doubt() == []
    assert contradiction(1.6, 1.6 * 1.09, 1.0) is None
    assert contradiction(1.6, 1.6 * 1.11, 1.0) is not None
