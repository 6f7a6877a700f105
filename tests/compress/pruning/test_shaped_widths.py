"""Widths of a shape: they meet the cost, keep multiples and bounds, and waste less than a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlc.compress.channels.unit import Unit
from mtlc.compress.pagcp.sweep import Rules, kept_counts
from mtlc.compress.pruning.shaped_widths import shaped_widths


class Chain:
    """Layers one after another: MACs are area · width in · width out, with 3 channels before the first."""

    kind = "macs"

    def __init__(self, channels: Mapping[str, int], areas: Mapping[str, int]) -> None:
        self.channels, self.areas = channels, areas

    def cost(self, removed: Mapping[str, Sequence[int]]) -> float:
        total, before = 0, 3
        for name, channels in self.channels.items():
            kept = channels - len(removed.get(name, ()))
            total += self.areas[name] * before * kept
            before = kept
        return float(total)

    def of(self, kept: Mapping[str, int]) -> float:
        return self.cost({name: list(range(kept[name], channels)) for name, channels in self.channels.items()})


def units(channels: Mapping[str, int]) -> list[Unit]:
    return [Unit(name, count, (), True) for name, count in channels.items()]


def test_even_widths_by_hand():
    """100 · 3 · 32 + 100 · 32 · 32 = 112,000; at half the widths 4,800 + 25,600 = 30,400."""
    channels = {"a": 32, "b": 32}
    chain, flat = Chain(channels, {"a": 100, "b": 100}), {"a": 1.0, "b": 1.0}
    assert shaped_widths(units(channels), chain, flat, Rules(round_to=8), 30_400) == {"a": 16, "b": 16}
    # Both would go to 16 at once, which is too much: both stay at 8, and the first gets its step back.
    assert shaped_widths(units(channels), chain, flat, Rules(round_to=8), 30_399) == {"a": 16, "b": 8}
    assert shaped_widths(units(channels), chain, flat, Rules(round_to=8), 112_000) == channels


def test_a_unit_at_its_bound_leaves_its_part_to_the_others():
    channels = {"a": 8, "b": 64}
    chain = Chain(channels, {"a": 10, "b": 10})
    kept = shaped_widths(units(channels), chain, {"a": 1.0, "b": 1.0}, Rules(round_to=8), 2_800)
    assert kept == {"a": 8, "b": 32}


def test_a_shape_is_followed():
    channels = {"a": 64, "b": 64}
    chain = Chain(channels, {"a": 1, "b": 1})
    kept = shaped_widths(units(channels), chain, {"a": 1.0, "b": 0.25}, Rules(round_to=1), 1_200)
    assert kept is not None
    assert kept["b"] / kept["a"] == pytest.approx(0.25, abs=0.02)


def test_what_cannot_be_met_is_none():
    channels = {"a": 16}
    assert shaped_widths(units(channels), Chain(channels, {"a": 1}), {"a": 1.0}, Rules(round_to=8), 23.9) is None
    assert shaped_widths([], Chain(channels, {"a": 1}), {}, Rules(round_to=8), 23.9) is None


@settings(deadline=None, max_examples=60)
@given(
    widths=st.lists(st.integers(4, 96), min_size=1, max_size=6),
    areas=st.lists(st.integers(1, 400), min_size=6, max_size=6),
    shape=st.lists(st.floats(0.05, 4), min_size=6, max_size=6),
    share=st.floats(0.02, 1),
    round_to=st.sampled_from([1, 4, 8]),
)
def test_the_target_is_met_within_the_bounds(widths, areas, shape, share, round_to):
    names = [f"u{index}" for index in range(len(widths))]
    channels = dict(zip(names, widths, strict=True))
    chain = Chain(channels, dict(zip(names, areas, strict=False)))
    rules = Rules(round_to=round_to)
    target = share * chain.cost({})
    kept = shaped_widths(units(channels), chain, dict(zip(names, shape, strict=False)), rules, target)
    least = {name: min(kept_counts(count, rules), default=count) for name, count in channels.items()}
    if kept is None:
        assert chain.of(least) > target
        return
    assert chain.of(kept) <= target
    for name, count in kept.items():
        assert least[name] <= count <= channels[name]
        assert count % round_to == 0 or count == channels[name]
