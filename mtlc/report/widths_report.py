"""Writes the page of a slimmable network: one HTML file without anything to fetch.

`write_widths_report` shows what it is given and leaves out what it is not: every part of `mtlc.results.slim.SlimResult`
is optional.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mtlc
from mtlc.report.parts.numbers import DASH, as_bytes, as_change, as_count, as_duration, as_number, as_percent, as_times
from mtlc.report.parts.page import json_text, tile, write_page
from mtlc.results.slim import PreferencePoint, SlimPoint, SlimResult, TaskMetric, WidthGroup

FOLD = 24
"""Rows of a table from which on it is folded away."""


def write_widths_report(results: SlimResult | Mapping[str, Any], path: Path) -> None:
    """Write the page of `results`, what ``mtlc slim`` returns or what its slim.json holds, to `path`, atomically.

    Raises `UserError` if the file cannot be written, or `results` are no such results.
    """
    write_page("widths.html.j2", _view(SlimResult.read(results, "slim.json")), path)


def _view(results: SlimResult) -> dict[str, Any]:
    """What the template shows: every number already words."""
    tasks, stages, widths = results.tasks or {}, results.stages or [], results.widths or []
    parts = [
        f"{len(tasks)} tasks: {', '.join(tasks)}" if tasks else "",
        f"{len(stages)} encoder stages" if stages else "",
        f"widths {', '.join(f'{width:g}' for width in widths)}" if widths else "",
    ]
    return {
        "title": results.title or "Slimmable network",
        "subtitle": " · ".join(part for part in parts if part),
        "summary": {"words": _words(results), "tiles": _tiles(results), "warning": _warning(results)},
        "use": _use(results),
        "front": _front(results),
        "points": _points(results),
        "control": _control(results),
        "groups": _groups(results.groups),
        "left_alone": results.left_alone or [],
        "fold": FOLD,
        "provenance": _provenance(results),
        "job": json_text(results.job, "slim.json"),
    }


def _warning(results: SlimResult) -> str | None:
    found = results.unlearned_warning()
    return None if found is None else f"{found[:1].upper()}{found[1:]}."


def _words(results: SlimResult) -> str:
    if results.cost is None:
        return ""
    from mtlc.report.figures.widths import as_macs, macs_unit

    widest, narrowest = results.cost.widest, results.cost.narrowest
    unit = macs_unit(widest)[1]
    words = (
        f"One network that runs at any of its widths without retraining, from {as_macs(widest, widest)} down to "
        f"{as_macs(narrowest, widest)} {unit} ({as_percent(narrowest / widest, 0)})."
    )
    narrower = [point for point in results.points or () if point.macs < widest and _finite(_delta(point)[0])]
    if narrower and results.unlearned_warning() is None:
        half = min(narrower, key=lambda point: abs(point.macs - widest / 2))
        change, split = _delta(half)
        words += (
            f" With {as_percent(half.macs / widest, 0)} of the MACs its tasks are on average "
            f"{abs(change):.2f} % {'worse' if change < 0 else 'better'} than at full width ({split})."
        )
    return words


def _delta(point: SlimPoint) -> tuple[float, str]:
    """A point's Δm in percent and the split that it is from: validation where that was measured."""
    if point.delta_m is not None:
        return point.delta_m, "validation split"
    return _percent(point.gain), "held-out data"


def _percent(gain: float | None) -> float:
    return math.nan if gain is None else 100 * gain


def _tiles(results: SlimResult) -> list[dict[str, Any]]:
    tiles = []
    cost, bundle, control = results.cost, results.bundle, results.controllability
    if cost is not None:
        from mtlc.report.figures.widths import as_macs, macs_unit

        value = f"{as_macs(cost.widest, cost.widest)} → {as_macs(cost.narrowest, cost.widest)}"
        tiles.append(tile("Cost", value, f"{macs_unit(cost.widest)[1]}, widest → narrowest", "modelled"))
    if results.points:
        tiles.append(tile("Named", str(len(results.points)), "configurations with a name", None))
    if bundle is not None and (count := _configurations(results)) is not None:
        number = f"{count:,}".replace(",", "\N{NO-BREAK SPACE}")
        tiles.append(tile("In the bundle", number, f"configurations, of {bundle.encoders} encoders", None))
    if bundle is not None and bundle.bytes is not None:
        of_widest = bundle.bytes / bundle.widest_bytes if bundle.widest_bytes else None
        note = f"{as_times(of_widest)} the widest alone" if of_widest else ""
        tiles.append(tile("Bundle", as_bytes(bundle.bytes), note, "measured"))
    if control is not None and control.range:
        mean = sum(math.nan if value is None else value for value in control.range.values()) / len(control.range)
        tiles.append(tile("Control", f"{mean:.2f} points", "mean range of a task's change", "measured"))
    return tiles


def _configurations(results: SlimResult) -> int | None:
    """How many the bundle can run: each of its encoders with any width of each decoder."""
    encoders = results.bundle.encoders if results.bundle is not None else None
    groups, tasks = results.groups or {}, results.tasks or {}
    if not encoders or not tasks or any(task not in groups for task in tasks):
        return None
    return encoders * math.prod(len(groups[task].options) for task in tasks)


def _use(results: SlimResult) -> dict[str, Any] | None:
    """The code that chooses widths at run time, and how closely the bundle agrees with the network."""
    bundle, tasks, points = results.bundle, list(results.tasks or ()), results.points
    if bundle is None or not tasks:
        return None
    least = results.cost.narrowest / results.cost.widest if results.cost is not None else 0.0
    budget = f"{max(40, 10 * math.ceil(10 * least))}%"
    prefer = f"{{{_quoted(tasks[0])}: 0.7, {_quoted(tasks[1])}: 0.3}}" if len(tasks) > 1 else None
    checked = list(_errors(bundle.verification))
    return {
        "path": Path(bundle.path).name,
        "budget": f"session.configure(budget={_quoted(budget)}{f', prefer={prefer}' if prefer else ''})",
        "name": f"session.configure({_quoted(points[-1].name)})" if points else None,
        "verified": f"{max(checked):.1g}" if checked else None,
    }


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _errors(verification: Any) -> Iterator[float]:
    """The relative errors anywhere in a report of verification."""
    if isinstance(verification, Mapping):
        for key, value in verification.items():
            yield from [value] if key == "max_rel" else _errors(value)


def _front(results: SlimResult) -> dict[str, Any] | None:
    front, measured, points = results.front or [], results.measured or [], results.points or []
    if not front and not points:
        return None
    from mtlc.report.figures.widths import front_series, pareto_front

    named = [(point.name, point.macs, _percent(point.gain)) for point in points]
    words = "Δm is the mean over the tasks of the relative change against the widest, positive for an improvement."
    if front:
        several = f"{len(front)} configurations that no other" if len(front) > 1 else "one configuration that no other"
        words += f" The bundle has {several} of its own beats in both cost and Δm, with all tasks preferred alike."
    return {"words": words, "named": bool(points), "svg": pareto_front(front_series(front, measured), named)}


def _points(results: SlimResult) -> dict[str, Any] | None:
    points = results.points
    if not points:
        return None
    from mtlc.report.figures.widths import WidthRow, as_macs, macs_unit, widths_picture

    tasks = results.tasks or {}
    stages = results.stages or list(points[0].encoder)
    widest = (results.cost.widest if results.cost is not None else 0) or max(point.macs for point in points)
    validated = any(point.validation for point in points)
    learned = results.unlearned_warning() is None  # else a change against the widest says nothing
    rows = [
        {
            "name": point.name,
            "macs": as_macs(point.macs, widest),
            "share": as_percent(point.macs / widest, 0),
            "gain": as_change(_percent(point.gain)) if learned else DASH,
            "delta": as_change(point.delta_m) if learned else DASH,
            "interval": point.delta_m_interval.between() if learned and point.delta_m_interval is not None else "",
            "metrics": _metrics(point.validation if validated else point.metrics, tasks),
            "encoder": _widths(point.encoder),
            "decoders": _widths(point.decoders),
        }
        for point in points
    ]
    single = results.single_task
    picture = [WidthRow(point.name, point.encoder, point.decoders, point.macs) for point in points]
    return {
        "svg": widths_picture(picture, stages, list(tasks) or list(points[0].decoders)),
        "tasks": [_heading(name, task) for name, task in tasks.items()],
        "rows": rows,
        "unit": macs_unit(widest)[1],
        "validated": validated,
        "single": _metrics(single, tasks) if single else None,
    }


def _metrics(found: Mapping[str, float | None] | None, tasks: Mapping[str, TaskMetric]) -> list[str]:
    return [as_number((found or {}).get(task)) for task in tasks]


def _heading(name: str, task: TaskMetric) -> dict[str, str]:
    unit = f"({task.unit}) " if task.unit else ""
    return {"name": name, "metric": task.metric, "unit": unit, "arrow": "↑" if task.higher_is_better else "↓"}


def _widths(widths: Mapping[str, float]) -> str:
    """All widths in order, or the one that all have."""
    if len(set(widths.values())) == 1:
        return f"all {next(iter(widths.values())):g}"
    return " ".join(f"{width:g}" for width in widths.values())


def _control(results: SlimResult) -> dict[str, Any] | None:
    control = results.controllability
    if control is None or not any(control.tasks.values()):
        return None
    from mtlc.report.figures.widths import as_macs, controllability_chart, macs_unit

    curves = {task: sorted(curve, key=_preference) for task, curve in control.tasks.items() if curve}
    ranges, ranks = control.range or {}, control.monotonicity or {}
    tasks, reference = results.tasks or {}, results.reference or {}
    widest = (results.cost.widest if results.cost is not None else 0) or control.budget
    share = f", {as_percent(control.share, 0)} of the widest" if control.share else ""
    rows = [
        {
            "name": task,
            "heading": _heading(task, tasks[task]) if task in tasks else None,
            "least": as_number(curve[0].metric),
            "most": as_number(curve[-1].metric),
            "widest": as_number(reference.get(task)),
            "range": _two_digits(ranges.get(task)),
            "rank": _two_digits(ranks.get(task)).replace("-", "−"),
        }
        for task, curve in curves.items()
    ]
    notes = {task: f"range {value:.2f} points" for task, value in ranges.items() if _finite(value)}
    points = {task: [(one.preference, 100 * one.gain) for one in curve] for task, curve in curves.items()}
    return {
        "words": f"Each task alone is preferred more and more, at a budget of {as_macs(control.budget, widest)} "
        f"{macs_unit(widest)[1]}{share}; the others share the rest alike.",
        "svg": controllability_chart(points, notes),
        "rows": rows,
    }


def _preference(one: PreferencePoint) -> float:
    return one.preference


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _two_digits(value: float | None) -> str:
    return DASH if value is None or not math.isfinite(value) else f"{value:.2f}"


def _groups(groups: Mapping[str, WidthGroup] | None) -> dict[str, Any] | None:
    if not groups:
        return None
    rows = []
    for name, group in groups.items():
        for place, (unit, kept) in enumerate(group.units.items()):
            rows.append(
                {
                    "group": name if place == 0 else None,
                    "span": len(group.units),
                    "options": _joined(group.options),
                    "unit": unit,
                    "kept": _joined(kept),
                }
            )
    return {"rows": rows, "count": len(groups)}


def _joined(numbers: Sequence[float]) -> str:
    return " · ".join(f"{number:g}" for number in numbers)


def _provenance(results: SlimResult) -> list[tuple[str, str]]:
    versions = {"mtlc": mtlc.__version__, **(results.versions or {})}
    rows = list(versions.items())
    training = results.training
    if training is not None:
        took = "" if training.seconds is None else f", {as_duration(training.seconds)}"
        rows.append(("training", f"{as_count(training.steps)} steps, {as_count(training.samples)} samples{took}"))
        if training.losses:
            losses = " · ".join(f"{name} {as_number(value)}" for name, value in training.losses.items())
            rows.append(("losses at its end", losses))
    if results.measurements is not None:
        rows.append(("networks measured", str(results.measurements)))
    if results.seconds is not None:
        rows.append(("time in all", as_duration(results.seconds)))
    return rows
