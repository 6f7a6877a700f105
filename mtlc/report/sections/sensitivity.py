"""The report's sections on what stood in the way of pruning: how sensitive the tasks are, and which of them stopped what."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mtlc.report.parts.numbers import as_percent

MAX_BLOCKED = 60


def sensitivity_section(sensitivity: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A map of each task's loss growth by unit and ratio, and the strongest tie in words."""
    if not sensitivity or not sensitivity.get("units") or not sensitivity.get("growth"):
        return None
    from mtlc.report.figures.charts import sensitivity_maps

    worst = max(
        ((value, unit["name"], task, ratio)
         for unit, rows in zip(sensitivity["units"], sensitivity["growth"], strict=True)
         for ratio, row in zip(sensitivity["ratios"], rows, strict=True)
         for task, value in zip(sensitivity["tasks"], row, strict=True) if value is not None and math.isfinite(value)),
        default=None,
    )  # fmt: skip
    words = "How much each task's loss grows on the calibration split when one unit alone loses some of its channels."
    if worst is not None:
        words += f" The strongest tie: {worst[2]} to {worst[1]} ({as_percent(worst[0])} at {as_percent(worst[3])} of its channels)."
    return {"svg": sensitivity_maps(sensitivity), "words": words}


def blocked_section(blocked: Any) -> dict[str, Any] | None:
    """A row for each unit that was not pruned further, at most `MAX_BLOCKED`, and how many each task stopped."""
    if not blocked:
        return None
    counts = Counter(entry["task"] for entry in blocked).most_common()
    words = "; ".join(f"{task} stopped {count} unit{'s' if count > 1 else ''}" for task, count in counts)
    rows = [
        {"unit": e["unit"], "task": e["task"], "ratio": as_percent(e.get("ratio")),
         "growth": as_percent(e.get("growth"), 2), "allowed": as_percent(e.get("allowed"), 2)}
        for e in blocked[:MAX_BLOCKED]
    ]  # fmt: skip
    return {"rows": rows, "words": f"{words[:1].upper()}{words[1:]}.", "more": max(len(blocked) - MAX_BLOCKED, 0)}
