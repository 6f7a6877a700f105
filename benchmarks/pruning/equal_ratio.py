"""Finds how many channels every unit keeps to reach a number of MACs by one ratio for all, in allowed multiples.

A rule says what each unit should keep at a ratio: the same share of each, or the channels whose score is above one
threshold. The ratio is bisected. Every unit keeps the allowed number nearest to what the rule wants, never none of
them, so that no small layer vanishes by rounding and none is left whole because it would. What rounding leaves of the
budget goes to the units that it took most from. Units at the same place of different tasks' decoders that the rule
treats alike get it together or not at all: no task gains by standing first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mtlc.compress.channels.channel_costs import ChannelCosts
from mtlc.compress.channels.unit import Unit
from mtlc.compress.pagcp.sweep import Rules, kept_counts
from mtlc.errors import UserError

Wanted = Callable[[float], Mapping[str, float]]
"""From the share of channels that go, 0 to 1, to how many channels each unit should keep."""
_HALVINGS = 40


def allowed_counts(units: Iterable[Unit], round_to: int) -> dict[str, list[int]]:
    """By unit, the numbers of channels that it may keep, rising; the same that the prune pass may choose from."""
    rules = Rules(round_to=round_to)
    return {u.name: sorted([u.channels, *kept_counts(u.channels, rules, u.multiple, u.width)]) for u in units}


def same_share(units: Iterable[Unit]) -> Wanted:
    """Every unit keeps the same share of its channels."""
    channels = {unit.name: unit.channels for unit in units}
    return lambda gone: {name: count * (1 - gone) for name, count in channels.items()}


def above_threshold(scores: Mapping[str, Tensor]) -> Wanted:
    """Every unit keeps its channels whose score is among the best of all units'. `scores`: (channels,) by unit."""
    every = torch.cat([score.flatten() for score in scores.values()]).sort().values

    def wanted(gone: float) -> dict[str, float]:
        index = min(int(gone * len(every)), len(every) - 1)
        return {name: float((score >= every[index]).sum()) for name, score in scores.items()}

    return wanted


def kept_within(
    costs: ChannelCosts,
    allowed: Mapping[str, Sequence[int]],
    wanted: Wanted,
    target: float,
    place: Callable[[str], str] = str,
) -> dict[str, int]:
    """By unit, how many channels stay, for at most `target` MACs and as near to them as one ratio comes.

    `place` gives units that stand at the same place for different tasks the same name. Raises `UserError` where the
    narrowest allowed network has more MACs.
    """

    def cost(kept: Mapping[str, int]) -> float:
        return costs.cost({name: range(count, allowed[name][-1]) for name, count in kept.items()})

    least = cost({name: counts[0] for name, counts in allowed.items()})
    if least > target:
        raise UserError(
            f"{target:,.0f} MACs are under what can be reached: {least:,.0f} with every unit at its narrowest; "
            "take a milder cut, or a smaller --round-to"
        )
    low, high = 0.0, 1.0  # the narrowest always fits, so `high` does once nothing is wanted of any unit
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if cost(_nearest(allowed, wanted(middle))) <= target:
            high = middle
        else:
            low = middle
    kept = _nearest(allowed, wanted(high)) if high < 1 else {name: counts[0] for name, counts in allowed.items()}
    return _filled(kept, allowed, wanted(high), place, lambda found: cost(found) <= target)


def _nearest(allowed: Mapping[str, Sequence[int]], wanted: Mapping[str, float]) -> dict[str, int]:
    """The allowed count nearest to what is wanted of each unit; the larger one where two are as near."""
    found = {}
    for name, counts in allowed.items():
        # Six digits hide what binary fractions leave of a tie; of the whole unit, so that all units tie at one ratio.
        found[name] = min(reversed(counts), key=lambda c, n=name, w=counts[-1]: round(abs(c - wanted[n]) / w, 6))
    return found


def _filled(
    kept: dict[str, int],
    allowed: Mapping[str, Sequence[int]],
    wanted: Mapping[str, float],
    place: Callable[[str], str],
    fits: Callable[[Mapping[str, int]], bool],
) -> dict[str, int]:
    """`kept` with the next allowed count where that still fits, for those first that lack most of what is wanted."""
    alike: dict[tuple[float, int, str], list[str]] = defaultdict(list)
    for name, count in kept.items():
        # Relative to the unit: 4 channels of 16 are a larger loss than 4 of 128.
        alike[round((wanted[name] - count) / allowed[name][-1], 6), count, place(name)].append(name)
    for (_, count, _), names in sorted(alike.items(), key=lambda item: (-item[0][0], item[1])):
        above = [larger for larger in allowed[names[0]] if larger > count]
        wider = kept | dict.fromkeys(names, above[0]) if above else kept
        if fits(wider):
            kept = wider
    return kept
