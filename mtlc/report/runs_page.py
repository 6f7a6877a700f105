"""Writes the page of ``mtlc report --compare``: several runs side by side, in one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mtlc
from mtlc.report.parts.changes_in_percent import interval_words
from mtlc.report.parts.numbers import DASH, as_bytes, as_change, as_count, as_number, as_percent, as_times, marked
from mtlc.report.parts.page import write_page
from mtlc.report.sections.paid import whisker
from mtlc.results.runs_comparison import ComparedRun, RunsComparison, RunTask

FOLD = 24


def write_runs_page(result: RunsComparison, path: Path) -> None:
    """Write what `mtlc.workflows.compare_runs.compare_runs` found as a page to `path`, atomically.

    Raises `UserError` if the file cannot be written.
    """
    write_page("runs.html.j2", _view(result), path)


def _view(result: RunsComparison) -> dict[str, Any]:
    """What the template shows: every number already words."""
    from mtlc.report.figures.runs_scatter import runs_scatter

    runs = result.runs
    known = [(run, run.delta_m, _ends(run)) for run in runs if run.delta_m is not None]
    scatter = runs_scatter(
        [(run.label, run.macs, change, ends) for run, change, ends in known if run.macs is not None],
        [(run.label, run.latency_ms, change, ends) for run, change, ends in known if run.latency_ms is not None],
    )
    return {
        "title": f"{len(runs)} runs side by side",
        "subtitle": " · ".join(f"{run.label}: {run.title}" for run in runs),
        "labels": [run.label for run in runs],
        "letters": list(dict.fromkeys(run.label.partition(" ")[0] for run in runs)),
        "fold_differs": len(result.differs) <= FOLD,
        "notes": result.notes,
        "rows": [_row(run) for run in runs],
        "scatter": scatter,
        "tasks": _tasks(runs),
        "differs": [
            {"what": row.key, "values": [DASH if v is None else v for v in row.values]} for row in result.differs
        ],
        "widths": [
            {"name": row.name or "(network)", "before": _width(row.before), "after": [_width(one) for one in row.after]}
            for row in result.widths
        ],
        "fold": len(result.widths) <= FOLD,
        "provenance": [("mtlc", mtlc.__version__), *((run.label, run.path) for run in runs)],
        "job": None,
    }


def _ends(run: ComparedRun) -> tuple[float, float] | None:
    found = run.delta_m_interval
    return None if found is None else (found.low, found.high)


def _row(run: ComparedRun) -> dict[str, Any]:
    judged = [task.within for task in run.tasks.values() if task.within is not None]
    return {
        "label": run.label,
        "title": run.title,
        "passes": " → ".join(run.passes) or DASH,
        "macs": as_count(run.macs),
        "left": as_percent(run.macs / run.macs_before, 0) if run.macs is not None and run.macs_before else DASH,
        "parameters": as_count(run.parameters),
        "bytes": as_bytes(run.bytes),
        "ms": marked(as_number(run.latency_ms), run.in_doubt),
        "speedup": marked(as_times(run.speedup), run.in_doubt),
        "delta": as_change(run.delta_m),
        "interval": interval_words(run.delta_m_interval),
        "limits": f"{sum(judged)} of {len(judged)}" if judged else DASH,
        "tone": "bad" if run.missed or not all(judged) else "",
        "missed": run.missed,
    }


def _tasks(runs: list[ComparedRun]) -> list[dict[str, Any]]:
    """By task a row for each run that has it, all on one scale."""
    found = []
    for name in dict.fromkeys(task for run in runs for task in run.tasks):
        having = [(run, run.tasks[name]) for run in runs if name in run.tasks]
        drawn = [end for _, task in having for end in (task.change, *(task.interval or ())) if end is not None]
        scale = min([0.0, *drawn]), max([0.0, *drawn])
        first = having[0][1]
        unit = f" ({first.unit})" if first.unit else ""
        found.append(
            {
                "name": name,
                "metric": f"{first.metric}{unit} {'↑' if first.higher_is_better else '↓'}",
                "rows": [_task(run, task, scale) for run, task in having],
            }
        )
    return found


def _task(run: ComparedRun, task: RunTask, scale: tuple[float, float]) -> dict[str, Any]:
    tone = "bad" if task.within is False else ""
    return {
        "label": run.label,
        "before": as_number(task.before),
        "after": as_number(task.after),
        "change": as_change(task.change),
        "interval": interval_words(task.interval),
        "limit": DASH if task.limit is None else task.limit,
        "verdict": {True: "kept", False: "missed", None: ""}[task.within],
        "tone": {True: "good", False: "bad", None: ""}[task.within],
        "whisker": None if task.change is None else whisker(run.label, task.change, task.interval, None, tone, scale),
    }


def _width(channels: int | None) -> str:
    return DASH if channels is None else str(channels)
