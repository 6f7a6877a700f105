"""Measures how much every task needs each channel group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mtlc.compress.pagcp.oracle import Oracle
from mtlc.compress.pagcp.sweep import Rules, least_important
from mtlc.log import tracked


def sensitivity(oracle: Oracle, ratios: Sequence[float], rules: Rules) -> dict[str, Any]:
    """The relative growth of each task's calibration loss with every unit pruned alone at every ratio.

    ``growth`` is (units × ratios × tasks); None where the loss was 0 or is infinite.
    """
    tasks = list(oracle.original)
    growth = []
    for unit in tracked(oracle.units.values(), "sensitivity of channel groups"):
        rows = []
        for ratio in ratios:
            # In steps that group norms allow, and one step at least: a unit without channels is no network.
            kept = max(1, round(unit.channels * (1 - ratio) / unit.multiple)) * unit.multiple
            losses = oracle.trial(unit.name, least_important(oracle, unit, kept, rules))
            rows.append([_relative(losses[t], oracle.original[t]) for t in tasks])
        growth.append(rows)
    units = [{"name": u.name, "channels": u.channels} for u in oracle.units.values()]
    return {"units": units, "ratios": list(ratios), "tasks": tasks, "growth": growth}


def _relative(value: float, base: float) -> float | None:
    growth = value / base - 1 if base > 0 else math.inf
    return growth if math.isfinite(growth) else None
