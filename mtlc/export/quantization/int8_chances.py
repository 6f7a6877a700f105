"""Says how far what INT8 costs a task is a matter of which validation samples there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mtlc.evaluation.bootstrap import Statistics, drawn_pairs, interval, share_kept
from mtlc.evaluation.criteria import Criteria
from mtlc.export.quantization.control import Bound

_SEED = 0


def int8_chances(
    criteria: Criteria, plain: Statistics, int8: Statistics, limits: Mapping[str, tuple[Bound, Statistics]]
) -> dict[str, dict[str, Any]]:
    """By task, ``change_interval``: the 95 % interval of the metric in INT8 less that in floating point, in its unit.

    And ``kept_in``, for a task with a limit: the share of draws that keep it, against what the limit is measured from.
    Empty for a metric that does not say what samples add to it; ``change_interval`` is None of one sample.
    """
    found: dict[str, dict[str, Any]] = {}
    for task in criteria.tasks:
        pairs = drawn_pairs(plain, int8, [task.name], _SEED)
        if pairs is None:
            found[task.name] = {}
            continue
        before, after = pairs[task.name]
        change = interval(after - before, len(plain[task.name].rows))
        found[task.name] = {"change_interval": None if change is None else asdict(change)}
        if task.name in limits:
            bound, base = limits[task.name]
            against = drawn_pairs(base, int8, [task.name], _SEED)
            if against is not None:
                found[task.name]["kept_in"] = share_kept(bound.limit, against[task.name], bound.higher_is_better)
    return found


def is_confident(bound: Bound, chances: Mapping[str, Any]) -> bool:
    """Whether a limit is kept as often as it asks for; True for one that asks for no confidence."""
    return bound.limit.confidence is None or chances.get("kept_in", 0.0) >= bound.limit.confidence
