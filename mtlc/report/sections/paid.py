"""Lays out what each task paid for the top of the report: its change with its interval and its limit, on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtlc.report.parts.changes_in_percent import gain_percent, interval_percent, interval_words, limit_percent
from mtlc.report.parts.numbers import DASH, as_change, as_number
from mtlc.results.run import RunResults
from mtlc.results.tasks import DeltaM, TaskResult

Ends = tuple[float, float] | None


def paid(results: RunResults) -> dict[str, Any] | None:
    """A row for each task and one for Δm; None without tasks."""
    tasks = results.tasks
    if not tasks:
        return None
    delta = results.delta_m if all(task.learned() for task in tasks.values()) else DeltaM()
    found = delta.vs_original_interval
    mean: Ends = None if found is None else (found.low, found.high)
    reach = [0.0, *(value for task in tasks.values() for value in _drawn(task))]
    reach += [value for value in (delta.vs_original, *(mean or ())) if value is not None]
    scale = min(reach), max(reach)
    rows = [_row(name, task, scale) for name, task in tasks.items()]
    return {
        "rows": rows,
        "delta": None
        if delta.vs_original is None
        else {
            "change": as_change(delta.vs_original),
            "interval": interval_words(mean),
            "whisker": whisker("Δm", delta.vs_original, mean, None, "", scale),
        },
        "intervals": any(row["interval"] for row in rows),
        "limits": any(task.limit is not None for task in tasks.values()),
    }


def _drawn(task: TaskResult) -> list[float]:
    """All percentages of a task that its row draws."""
    ends = interval_percent(task) or ()
    return [one for one in (gain_percent(task), limit_percent(task.limit, task.before), *ends) if one is not None]


def _row(name: str, task: TaskResult, scale: tuple[float, float]) -> dict[str, Any]:
    change, ends = gain_percent(task), interval_percent(task)
    tone = "bad" if task.within is False else ""
    unit = f" {task.unit}" if task.unit else ""
    limit = limit_percent(task.limit, task.before)
    return {
        "name": name,
        "metric": f"{task.metric} {'↑' if task.higher_is_better else '↓'}",
        "before": as_number(task.before),
        "after": f"{as_number(task.after)}{unit}",
        "change": as_change(change) if change is not None else DASH,
        "interval": interval_words(ends),
        "tone": tone,
        "whisker": None if change is None else whisker(name, change, ends, limit, tone, scale),
    }


def whisker(
    name: str, change: float, ends: Ends, limit: float | None, tone: str, scale: Sequence[float]
) -> dict[str, Any]:
    """Where change, interval and limit stand on a line from the least to the largest of `scale`, in percent of it.

    All are percentages of the metric; `limit` is a negative change.
    """
    low, high = scale
    spare = 0.06 * (high - low) or 0.5

    def place(value: float) -> float:
        return round(100 * (value - low + spare) / (high - low + 2 * spare), 2)

    words = f"{name}: {as_change(change)}"
    words += f", 95 % interval {interval_words(ends)}" if ends else ""
    words += f", limit {as_change(limit)}" if limit is not None else ""
    return {
        "zero": place(0.0),
        "at": place(change),
        "interval": None if ends is None else (place(ends[0]), round(place(ends[1]) - place(ends[0]), 2)),
        "limit": None if limit is None else place(limit),
        "tone": tone,
        "words": words,
    }
