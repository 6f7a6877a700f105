"""Lays out the report's section on what was blocked: which task stopped which unit from being pruned further."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mtlc.report.parts.numbers import as_percent
from mtlc.results.run import RunResults

MAX_BLOCKED = 60


def blocked_section(results: RunResults) -> dict[str, Any] | None:
    """A row for each unit, at most `MAX_BLOCKED`, and how many each task stopped; None where none was stopped."""
    blocked = results.blocked
    if not blocked:
        return None
    counts = Counter(entry.task for entry in blocked).most_common()
    words = "; ".join(f"{task} stopped {count} unit{'s' if count > 1 else ''}" for task, count in counts)
    rows = [
        {"unit": entry.unit, "task": entry.task, "ratio": as_percent(entry.ratio),
         "growth": as_percent(entry.growth, 2), "allowed": as_percent(entry.allowed, 2)}
        for entry in blocked[:MAX_BLOCKED]
    ]  # fmt: skip
    return {"rows": rows, "words": f"{words[:1].upper()}{words[1:]}.", "more": max(len(blocked) - MAX_BLOCKED, 0)}
