"""Shows a bundle in INT8: as a section of a run's report, and as the page of ``mtlc quantize``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import mtlc
from mtlc.report.parts.numbers import DASH, as_bytes, as_change, as_count, as_number, as_percent
from mtlc.report.parts.page import json_text, tile, write_page
from mtlc.report.sections.provenance import machine_facts
from mtlc.results.quantize import Int8Metrics, Int8Task, QuantizeResult
from mtlc.results.tasks import TaskResult

FOLD = 24
_WEIGHTS = {"full": "8-bit weights", "reduced": "7-bit weights, right on x86 without VNNI too"}
_VERDICTS = {True: ("kept", "good"), False: ("missed", "bad"), None: ("", "")}


def write_quantization_page(result: QuantizeResult, path: Path) -> None:
    """Write what ``mtlc quantize --json`` prints as a page to `path`, atomically.

    Raises `UserError` if the file cannot be written.
    """
    write_page("quantization.html.j2", _view(result), path)


def quantization_section(found: QuantizeResult | None) -> dict[str, Any] | None:
    """What the template shows of ``results["quantization"]``: what each task paid on both splits, how much of its limit
    INT8 used up before and after the control, and the operators that are in floating point.
    """
    if found is None:
        return None
    tasks = found.tasks
    floats, excluded = found.operators.float_, found.operators.excluded
    return {
        "words": _words(found),
        "validation": [_row(name, task, "validation") for name, task in tasks.items()],
        "intervals": any(task.validation.change_interval is not None for task in tasks.values()),
        "control": [_row(name, task, "control") for name, task in tasks.items()],
        "control_samples": _samples(found.samples["control"]),
        "svg": _uses(tasks),
        "floats": [
            {
                "operator": row.operator,
                "kind": row.kind,
                "program": row.program,
                "task": row.task,
                "metric": _metric(tasks[row.task]),
                "before": as_number(row.before),
                "after": as_number(row.after),
            }
            for row in floats
        ],
        "excluded": excluded,
        "fold_floats": len(floats) > FOLD,
        "fold_excluded": len(excluded) > FOLD,
    }


def missed_in_int8(found: QuantizeResult | None, compressed: Mapping[str, TaskResult]) -> list[str]:
    """A line for each limit that a run's INT8 bundle misses and its compressed network, of the tasks, does not."""
    failed = {name for name, task in compressed.items() if task.within is False}
    tasks = {} if found is None else found.tasks
    return [task.missed for name, task in tasks.items() if task.missed is not None and name not in failed]


def limit_used(found: Int8Metrics, value: float | None) -> float | None:
    """How far a task's metric of `value` went from floating point to its bound: 0 is floating point, 1 the bound,
    below 0 an improvement. None without a bound, and where floating point has nothing left to lose.
    """
    plain, bound = found.float_, found.bound
    if plain is None or bound is None or value is None or bound == plain:
        return None
    return (value - plain) / (bound - plain) if all(map(math.isfinite, (plain, bound, value))) else None


def _words(found: QuantizeResult) -> str:
    operators, samples = found.operators, found.samples
    left = len(operators.float_)
    words = (
        f"{operators.int8} operators run in INT8 for the target {found.target} ({_WEIGHTS[found.weights]}): "
        f"{as_percent(found.macs_int8)} of the multiply–accumulates, counted from shapes. "
        f"The bundle goes from {as_bytes(found.bytes_before)} to {as_bytes(found.bytes)}. "
        f"Ranges come from {_samples(samples['ranges'])} of the calibration split, decisions from "
        f"{samples['control']}. "
    )
    if left:
        sakes = dict.fromkeys(row.task for row in operators.float_)
        words += f"{_operators(left)} went back to floating point, for the sake of {' and '.join(sakes)}."
    else:
        words += "No operator had to go back to floating point."
    if operators.excluded:
        words += f" {_operators(len(operators.excluded))} never left it."
    return words


def _operators(count: int) -> str:
    return f"{count} operator{'s' if count != 1 else ''}"


def _samples(count: int) -> str:
    return f"{count} sample{'s' if count != 1 else ''}"


def _metric(task: Int8Task) -> str:
    unit = f" ({task.unit})" if task.unit else ""
    return f"{task.metric}{unit} {'↑' if task.higher_is_better else '↓'}"


def _row(name: str, task: Int8Task, split: Literal["control", "validation"]) -> dict[str, str]:
    """A task on one split. The change is that of the INT8 bundle from floating point, positive for an improvement."""
    found = task.control if split == "control" else task.validation
    plain, reached = found.float_, found.int8
    sign = 1 if task.higher_is_better else -1
    # On validation a limit can be kept from what floating point reaches and missed all the same: floating point misses
    # it.
    within = False if split == "validation" and task.missed is not None else found.within
    verdict, tone = _VERDICTS[within]
    return {
        "name": name,
        "metric": _metric(task),
        "float": as_number(plain),
        "int8_all": as_number(found.int8_all),
        "int8": as_number(reached),
        "change": as_change(sign * 100 * (reached - plain) / abs(plain)) if plain and reached is not None else DASH,
        "interval": DASH if found.change_interval is None else found.change_interval.between(),
        "limit": task.limit or DASH,
        "bound": as_number(found.bound),
        "used": _used(found, reached),
        "used_all": _used(found, found.int8_all),
        "verdict": verdict,
        "tone": tone,
    }


def _used(found: Int8Metrics, value: float | None) -> str:
    return as_percent(limit_used(found, value), 0).replace("-", "−")


def _uses(tasks: Mapping[str, Int8Task]) -> str | None:
    rows = []
    for name, task in tasks.items():
        control = task.control
        everything, kept = (limit_used(control, value) for value in (control.int8_all, control.int8))
        if everything is not None and kept is not None:
            rows.append((name, everything, kept, limit_used(task.validation, task.validation.int8)))
    if not rows:
        return None
    from mtlc.report.figures.charts import limit_uses

    return limit_uses(rows)


def _view(result: QuantizeResult) -> dict[str, Any]:
    """What the template of the page shows: every number already words."""
    tasks, missed = result.tasks, result.missed
    judged = [task.missed is None for task in tasks.values() if task.limit is not None]
    parts = [f"{len(tasks)} tasks: {', '.join(tasks)}" if len(tasks) > 1 else ", ".join(tasks)]
    return {
        "title": f"{Path(result.path).name}: INT8 for {result.target}",
        "subtitle": " · ".join([*parts, f"made of {result.bundle}"]),
        "summary": {"words": _lead(result), "tiles": _tiles(result, judged)},
        "missed": missed,
        "verdict": "Every task kept its limit." if judged and not missed else "",
        "quantization": quantization_section(result),
        "provenance": _provenance(result),
        "job": json_text(None),
    }


def _lead(result: QuantizeResult) -> str:
    share, bytes_left = result.macs_int8, result.bytes / result.bytes_before
    return (
        f"{as_percent(share)} of the multiply–accumulates run in INT8, and the bundle has "
        f"{as_percent(bytes_left, 0)} of its former size."
    )


def _tiles(result: QuantizeResult, judged: list[bool]) -> list[dict[str, Any]]:
    operators, size = result.operators, f"{as_bytes(result.bytes_before)} → {as_bytes(result.bytes)}"
    tiles = [
        tile("In INT8", as_percent(result.macs_int8), "of the MACs", "modelled"),
        tile("Bundle", as_percent(result.bytes / result.bytes_before, 0), size, "measured"),
        tile("Floating point", str(len(operators.float_)), f"operators given back, {operators.int8} in INT8", None),
    ]
    if judged:
        tone = "good" if all(judged) else "bad"
        tiles.append(tile("Limits kept", f"{sum(judged)} of {len(judged)}", "on the validation split", None, tone))
    return tiles


def _provenance(result: QuantizeResult) -> list[tuple[str, str]]:
    rows = [("mtlc", mtlc.__version__), *result.versions.items()]
    rows += [("float bundle", result.bundle or DASH), ("INT8 bundle", result.path), ("job", result.job or DASH)]
    if result.against is not None:
        rows.append(("limits measured against", result.against))
    cost = result.cost
    rows.append(("search", f"{as_count(cost['rankings'])} operators ranked, {cost['measurements']} measurements"))
    return rows + ([] if result.device is None else machine_facts(result.device))
