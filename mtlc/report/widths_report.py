"""The report of a slimmable network: one HTML file, without scripts and without anything to fetch.

`write_widths_report` shows what it is given and leaves out what it is not: every section of `results` is optional (the
schema is in ``docs/report.md``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mtlc
from mtlc.report.parts.numbers import DASH, as_bytes, as_change, as_count, as_duration, as_number, as_percent, as_times
from mtlc.report.parts.page import json_text, tile, write_page

FOLD = 24


def write_widths_report(results: Mapping[str, Any], path: Path) -> None:
    """Write the report of `results`, what ``mtlc slim`` writes as slim.json, to `path`, atomically.

    Raises `UserError` if the file cannot be written.
    """
    write_page("widths.html.j2", _view(results), path)


def _view(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows: every number already words."""
    tasks, stages, widths = (results.get(key) or () for key in ("tasks", "stages", "widths"))
    parts = [
        f"{len(tasks)} tasks: {', '.join(tasks)}" if tasks else "",
        f"{len(stages)} encoder stages" if stages else "",
        f"widths {', '.join(f'{width:g}' for width in widths)}" if widths else "",
    ]
    return {
        "title": results.get("title") or "Slimmable network",
        "subtitle": " · ".join(part for part in parts if part),
        "summary": {"words": _words(results), "tiles": _tiles(results)},
        "use": _use(results),
        "front": _front(results),
        "points": _points(results),
        "control": _control(results),
        "groups": _groups(results.get("groups")),
        "left_alone": results.get("left_alone") or [],
        "fold": FOLD,
        "provenance": _provenance(results),
        "job": json_text(results.get("job"), "slim.json"),
    }


def _words(results: Mapping[str, Any]) -> str:
    cost, points = results.get("cost"), results.get("points") or ()
    if not cost:
        return ""
    from mtlc.report.figures.widths import as_macs, macs_unit

    widest, narrowest = cost["widest"], cost["narrowest"]
    unit = macs_unit(widest)[1]
    words = (
        f"One network that runs at any of its widths without retraining, from {as_macs(widest, widest)} down to "
        f"{as_macs(narrowest, widest)} {unit} ({as_percent(narrowest / widest, 0)})."
    )
    narrower = [point for point in points if point["macs"] < widest and _finite(_delta(point)[0])]
    if narrower:
        half = min(narrower, key=lambda point: abs(point["macs"] - widest / 2))
        change, split = _delta(half)
        words += (
            f" With {as_percent(half['macs'] / widest, 0)} of the MACs its tasks are on average "
            f"{abs(change):.2f} % {'worse' if change < 0 else 'better'} than at full width ({split})."
        )
    return words


def _delta(point: Mapping[str, Any]) -> tuple[float, str]:
    """A point's Δm in percent and the split that it is from: validation where that was measured."""
    if point.get("delta_m") is not None:
        return point["delta_m"], "validation split"
    return 100 * point["gain"], "held-out data"


def _tiles(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    tiles = []
    cost, bundle, control = (results.get(key) or {} for key in ("cost", "bundle", "controllability"))
    if cost:
        from mtlc.report.figures.widths import as_macs, macs_unit

        widest, narrowest = cost["widest"], cost["narrowest"]
        value = f"{as_macs(widest, widest)} → {as_macs(narrowest, widest)}"
        tiles.append(tile("Cost", value, f"{macs_unit(widest)[1]}, widest → narrowest", "modelled"))
    if results.get("points"):
        tiles.append(tile("Named", str(len(results["points"])), "configurations with a name", None))
    if (count := _configurations(results)) is not None:
        encoders = bundle["encoders"]
        tiles.append(
            tile(
                "In the bundle",
                f"{count:,}".replace(",", "\N{NO-BREAK SPACE}"),
                f"configurations, of {encoders} encoders",
                None,
            )
        )
    if bundle.get("bytes") is not None:
        of_widest = bundle["bytes"] / bundle["widest_bytes"] if bundle.get("widest_bytes") else None
        note = f"{as_times(of_widest)} the widest alone" if of_widest else ""
        tiles.append(tile("Bundle", as_bytes(bundle["bytes"]), note, "measured"))
    if control.get("range"):
        mean = sum(control["range"].values()) / len(control["range"])
        tiles.append(tile("Control", f"{mean:.2f} points", "mean range of a task's change", "measured"))
    return tiles


def _configurations(results: Mapping[str, Any]) -> int | None:
    """How many the bundle can run: each of its encoders with any width of each decoder."""
    encoders, groups = (results.get("bundle") or {}).get("encoders"), results.get("groups") or {}
    tasks = results.get("tasks") or ()
    if not encoders or not tasks or any(task not in groups for task in tasks):
        return None
    return encoders * math.prod(len(groups[task]["options"]) for task in tasks)


def _use(results: Mapping[str, Any]) -> dict[str, Any] | None:
    bundle, tasks, points = results.get("bundle"), list(results.get("tasks") or ()), results.get("points") or ()
    if not bundle or not tasks:
        return None
    cost = results.get("cost")
    least = cost["narrowest"] / cost["widest"] if cost else 0.0
    budget = f"{max(40, 10 * math.ceil(10 * least))}%"
    prefer = f"{{{_quoted(tasks[0])}: 0.7, {_quoted(tasks[1])}: 0.3}}" if len(tasks) > 1 else None
    checked = list(_errors(bundle.get("verification")))
    return {
        "path": Path(str(bundle.get("path") or "bundle")).name,
        "budget": f"session.configure(budget={_quoted(budget)}{f', prefer={prefer}' if prefer else ''})",
        "name": f"session.configure({_quoted(points[-1]['name'])})" if points else None,
        "verified": f"{max(checked):.1g}" if checked else None,
    }


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _errors(verification: Any) -> Iterator[float]:
    """The relative errors anywhere in a report of verification."""
    if isinstance(verification, Mapping):
        for key, value in verification.items():
            yield from [value] if key == "max_rel" else _errors(value)


def _front(results: Mapping[str, Any]) -> dict[str, Any] | None:
    front, measured, points = (results.get(key) or [] for key in ("front", "measured", "points"))
    if not front and not points:
        return None
    from mtlc.report.figures.widths import front_series, pareto_front

    named = [(point["name"], point["macs"], 100 * point["gain"]) for point in points]
    words = "Δm is the mean over the tasks of the relative change against the widest, positive for an improvement."
    if front:
        several = f"{len(front)} configurations that no other" if len(front) > 1 else "one configuration that no other"
        words += f" The bundle has {several} of its own beats in both cost and Δm, with all tasks preferred alike."
    return {"words": words, "named": bool(points), "svg": pareto_front(front_series(front, measured), named)}


def _points(results: Mapping[str, Any]) -> dict[str, Any] | None:
    points = results.get("points")
    if not points:
        return None
    from mtlc.report.figures.widths import WidthRow, as_macs, macs_unit, widths_picture

    tasks: Mapping[str, Any] = results.get("tasks") or {}
    stages = results.get("stages") or list(points[0]["encoder"])
    widest = (results.get("cost") or {}).get("widest") or max(point["macs"] for point in points)
    validated = any(point.get("validation") for point in points)
    rows = [
        {
            "name": point["name"],
            "macs": as_macs(point["macs"], widest),
            "share": as_percent(point["macs"] / widest, 0),
            "gain": as_change(100 * point["gain"]),
            "delta": as_change(point.get("delta_m")),
            "metrics": _metrics(point.get("validation" if validated else "metrics"), tasks),
            "encoder": _widths(point["encoder"]),
            "decoders": _widths(point["decoders"]),
        }
        for point in points
    ]
    single = results.get("single_task")
    picture = [WidthRow(point["name"], point["encoder"], point["decoders"], point["macs"]) for point in points]
    return {
        "svg": widths_picture(picture, list(stages), list(tasks) or list(points[0]["decoders"])),
        "tasks": [_heading(name, task) for name, task in tasks.items()],
        "rows": rows,
        "unit": macs_unit(widest)[1],
        "validated": validated,
        "single": _metrics(single, tasks) if single else None,
    }


def _metrics(found: Mapping[str, Any] | None, tasks: Mapping[str, Any]) -> list[str]:
    return [as_number((found or {}).get(task)) for task in tasks]


def _heading(name: str, task: Mapping[str, Any]) -> dict[str, str]:
    unit = f"({task['unit']}) " if task.get("unit") else ""
    return {"name": name, "metric": task["metric"], "unit": unit, "arrow": "↑" if task["higher_is_better"] else "↓"}


def _widths(widths: Mapping[str, float]) -> str:
    """All widths in order, or the one that all have."""
    if len(set(widths.values())) == 1:
        return f"all {next(iter(widths.values())):g}"
    return " ".join(f"{width:g}" for width in widths.values())


def _control(results: Mapping[str, Any]) -> dict[str, Any] | None:
    control = results.get("controllability")
    if not control or not any(control["tasks"].values()):
        return None
    from mtlc.report.figures.widths import as_macs, controllability_chart, macs_unit

    curves = {task: sorted(curve, key=_preference) for task, curve in control["tasks"].items() if curve}
    ranges, ranks = control.get("range") or {}, control.get("monotonicity") or {}
    tasks, reference = results.get("tasks") or {}, results.get("reference") or {}
    budget, widest = control["budget"], (results.get("cost") or {}).get("widest") or control["budget"]
    share = f", {as_percent(control['share'], 0)} of the widest" if control.get("share") else ""
    rows = [
        {
            "name": task,
            "heading": _heading(task, tasks[task]) if task in tasks else None,
            "least": as_number(curve[0].get("metric")),
            "most": as_number(curve[-1].get("metric")),
            "widest": as_number(reference.get(task)),
            "range": f"{ranges[task]:.2f}" if _finite(ranges.get(task)) else DASH,
            "rank": f"{ranks[task]:.2f}".replace("-", "−") if _finite(ranks.get(task)) else DASH,
        }
        for task, curve in curves.items()
    ]
    notes = {task: f"range {value:.2f} points" for task, value in ranges.items() if _finite(value)}
    points = {task: [(_preference(one), 100 * one["gain"]) for one in curve] for task, curve in curves.items()}
    return {
        "words": f"Each task alone is preferred more and more, at a budget of {as_macs(budget, widest)} "
        f"{macs_unit(widest)[1]}{share}; the others share the rest alike.",
        "svg": controllability_chart(points, notes),
        "rows": rows,
    }


def _preference(one: Mapping[str, Any]) -> float:
    return float(one["preference"])


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _groups(groups: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not groups:
        return None
    rows = []
    for group, found in groups.items():
        for place, (unit, kept) in enumerate(found["units"].items()):
            rows.append(
                {
                    "group": group if place == 0 else None,
                    "span": len(found["units"]),
                    "options": _joined(found["options"]),
                    "unit": unit,
                    "kept": _joined(kept),
                }
            )
    return {"rows": rows, "count": len(groups)}


def _joined(numbers: Sequence[float]) -> str:
    return " · ".join(f"{number:g}" for number in numbers)


def _provenance(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    versions = {"mtlc": mtlc.__version__, **(results.get("versions") or {})}
    rows = [(name, str(version)) for name, version in versions.items()]
    training = results.get("training")
    if training:
        steps, samples = as_count(training.get("steps")), as_count(training.get("samples"))
        seconds = training.get("seconds")
        took = "" if seconds is None else f", {as_duration(seconds)}"
        rows.append(("training", f"{steps} steps, {samples} samples{took}"))
        if losses := training.get("losses"):
            rows.append(("losses at its end", " · ".join(f"{name} {as_number(v)}" for name, v in losses.items())))
    if results.get("measurements") is not None:
        rows.append(("networks measured", str(results["measurements"])))
    if results.get("seconds") is not None:
        rows.append(("time in all", as_duration(results["seconds"])))
    return rows
