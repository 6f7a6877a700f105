"""Lays out the report's section on tasks: each one's metric before and after, its limit, and the mean change."""

from __future__ import annotations

import math
from typing import Any

from mtlc.report.parts.numbers import DASH, as_change, as_number
from mtlc.results.run import RunResults
from mtlc.results.tasks import DeltaM, TaskResult


def tasks_section(results: RunResults) -> dict[str, Any] | None:
    """A row and a bar for each task; None without tasks."""
    tasks = results.tasks
    if not tasks:
        return None
    from mtlc.report.figures.charts import task_changes

    changes = [
        (name, gain, _limit_percent(task.limit, task.before), task.within)
        for name, task in tasks.items()
        if (gain := _gain(task)) is not None
    ]
    return {
        "rows": [_row(name, task) for name, task in tasks.items()],
        "words": _delta_words(results.delta_m, all(task.learned() for task in tasks.values())),
        "single": any(task.single_task is not None for task in tasks.values()),
        "constant": any(task.constant is not None for task in tasks.values()),
        "svg": task_changes(changes) if changes else None,
    }


def _row(name: str, task: TaskResult) -> dict[str, Any]:
    return {
        "name": name,
        "metric": f"{task.metric} ({task.unit})" if task.unit else task.metric,
        "arrow": "↑" if task.higher_is_better else "↓",
        "before": as_number(task.before),
        "after": as_number(task.after),
        "change": as_change(_gain(task)),
        "limit": DASH if task.limit is None else task.limit,
        "verdict": {True: "kept", False: "missed", None: ""}[task.within],
        "tone": {True: "good", False: "bad", None: ""}[task.within],
        "single": as_number(task.single_task),
        "constant": as_number(task.constant),
    }


def _gain(task: TaskResult) -> float | None:
    """The change of the metric in percent, positive for an improvement; None where there is nothing to divide by, and
    where the original has learned nothing.
    """
    before, after = task.before, task.after
    if not task.learned() or not before or after is None or not (math.isfinite(before) and math.isfinite(after)):
        return None
    return (1 if task.higher_is_better else -1) * 100 * (after - before) / abs(before)


def _delta_words(delta: DeltaM, learned: bool) -> str:
    parts = ["The change column counts an improvement as positive whichever way the metric points."]
    if not learned:
        parts.append("There is no Δm against an original that is no better than a constant predictor.")
    elif delta.vs_original is not None:
        parts.append(f"Their mean, Δm, is {as_change(delta.vs_original)} against the original network")
        if delta.vs_single_task is not None:
            parts[-1] += f" and {as_change(delta.vs_single_task)} against one network per task"
        parts[-1] += "."
    return " ".join(parts)


def _limit_percent(limit: str | None, before: float | None) -> float | None:
    """A limit such as "1%" or "0.02" as a negative change in percent of the metric before."""
    if limit is None or not before:
        return None
    text = limit.strip()
    try:
        return -float(text[:-1]) if text.endswith("%") else -100 * float(text) / abs(before)
    except ValueError:
        return None
