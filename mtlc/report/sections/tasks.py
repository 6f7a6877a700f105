"""Lays out the report's section on tasks: each one's metric before and after, its limit, and the mean change."""

from __future__ import annotations

from typing import Any

from mtlc.report.parts.changes_in_percent import gain_percent, limit_percent
from mtlc.report.parts.numbers import DASH, as_change, as_number
from mtlc.results.run import RunResults
from mtlc.results.tasks import DeltaM, LabelledSamples, TaskResult


def tasks_section(results: RunResults) -> dict[str, Any] | None:
    """A row and a bar for each task; None without tasks."""
    tasks = results.tasks
    if not tasks:
        return None
    from mtlc.report.figures.charts import task_changes

    changes = [
        (name, gain, limit_percent(task.limit, task.before), task.within)
        for name, task in tasks.items()
        if (gain := gain_percent(task)) is not None
    ]
    return {
        "rows": [_row(name, task) for name, task in tasks.items()],
        "words": _delta_words(results.delta_m, all(task.learned() for task in tasks.values())),
        "single": any(task.single_task is not None for task in tasks.values()),
        "constant": any(task.constant is not None for task in tasks.values()),
        "interval": any(task.change_interval is not None or task.no_interval is not None for task in tasks.values()),
        "labels": any(task.samples is not None for task in tasks.values()),
        "unknown": [f"{name}: {task.no_interval}." for name, task in tasks.items() if task.no_interval is not None],
        "svg": task_changes(changes) if changes else None,
    }


def _row(name: str, task: TaskResult) -> dict[str, Any]:
    return {
        "name": name,
        "metric": f"{task.metric} ({task.unit})" if task.unit else task.metric,
        "arrow": "↑" if task.higher_is_better else "↓",
        "before": as_number(task.before),
        "after": as_number(task.after),
        "change": as_change(gain_percent(task)),
        "limit": DASH if task.limit is None else task.limit,
        "interval": DASH if task.change_interval is None else task.change_interval.between(),
        "labels": DASH if task.samples is None else " / ".join(f"{count:,}" for count in _counts(task.samples)),
        "verdict": "kept by chance" if task.by_chance and task.within else _VERDICTS[task.within],
        "tone": {True: "good", False: "bad", None: ""}[task.within],
        "single": as_number(task.single_task),
        "constant": as_number(task.constant),
    }


_VERDICTS = {True: "kept", False: "missed", None: ""}


def _counts(samples: LabelledSamples) -> tuple[int, int, int]:
    return samples.train, samples.calibration, samples.validation


def _delta_words(delta: DeltaM, learned: bool) -> str:
    parts = ["The change column counts an improvement as positive whichever way the metric points."]
    if not learned:
        parts.append("There is no Δm against an original that is no better than a constant predictor.")
    elif delta.vs_original is not None:
        parts.append(f"Their mean, Δm, is {as_change(delta.vs_original)} against the original network")
        if delta.vs_original_interval is not None:
            parts[-1] += f" ({delta.vs_original_interval.words()} %)"
        if delta.vs_single_task is not None:
            parts[-1] += f" and {as_change(delta.vs_single_task)} against one network per task"
            if delta.vs_single_task_interval is not None:
                parts[-1] += f" ({delta.vs_single_task_interval.words()} %)"
        parts[-1] += "."
    return " ".join(parts)
