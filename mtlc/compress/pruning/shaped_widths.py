"""Turns a wish for every unit into channel counts that just meet a cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mtlc.compress.channels.unit import Unit
from mtlc.compress.pagcp.sweep import Costs, Rules, channel_step, kept_counts


def shaped_widths(
    units: Iterable[Unit], costs: Costs, shape: Mapping[str, float], rules: Rules, target: float
) -> dict[str, int] | None:
    """The channels that every unit keeps, about c · `shape` of those it has, for the largest c whose cost fits.

    `shape` maps units to positive numbers; all 1 cuts every unit by the same ratio. Counts are multiples of what the
    rules and the unit ask for, never below the narrowest that a sweep may try and never above what there is, so a unit
    that reaches a bound leaves its part to the others. After c is found, units that rounding has cut most get a step
    back each while the cost stays at most `target`. None where the narrowest network costs more than `target`, or there
    is no unit.
    """
    every = sorted(units, key=lambda unit: unit.name)
    if not every:
        return None
    steps = {u.name: channel_step(u, rules) for u in every}
    least = {u.name: min(kept_counts(u.channels, rules, u.multiple, u.width), default=u.channels) for u in every}

    def counts(scale: float) -> dict[str, int]:
        kept = {}
        for unit in every:
            wished = scale * shape[unit.name] * unit.channels
            step = steps[unit.name]
            kept[unit.name] = min(unit.channels, max(least[unit.name], round(wished / step) * step))
        return kept

    def cost(kept: Mapping[str, int]) -> float:
        # Costs count channels, not which ones they are.
        return costs.cost({u.name: list(range(kept[u.name], u.channels)) for u in every})

    low, high = 0.0, 1 / min(shape[u.name] for u in every)
    if cost(counts(low)) > target:
        return None
    # Rounding makes the cost a stair in c; bisection ends at the edge of one, which is all that is asked for.
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(counts(middle)) <= target else (low, middle)
    kept = counts(low)
    short = {u.name: low * shape[u.name] * u.channels - kept[u.name] for u in every}
    for name in sorted(short, key=lambda name: (-short[name] / steps[name], name)):
        channels = next(u.channels for u in every if u.name == name)
        wider = {**kept, name: min(channels, kept[name] + steps[name])}
        if wider[name] > kept[name] and cost(wider) <= target:
            kept = wider
    return kept
