"""The report of a compression: one HTML file, without scripts and without anything to fetch.

`write_report` shows what it is given and leaves out what it is not: every section of `results` is optional (the schema
is in ``docs/report.md``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import mtlc
from mtlc.errors import UserError
from mtlc.report.parts.numbers import as_bytes, as_change, as_count, as_duration, as_number, as_percent, as_times
from mtlc.report.parts.page import json_text, tile, write_page
from mtlc.report.result_parts import results_latency, results_layers
from mtlc.report.sections.changes import changes_section, running_costs
from mtlc.report.sections.devices import devices_section
from mtlc.report.sections.experts import experts_section
from mtlc.report.sections.fpga import fpga_sections
from mtlc.report.sections.int8 import missed_in_int8, quantization_section
from mtlc.report.sections.routing import routing_section
from mtlc.report.sections.sensitivity import blocked_section, sensitivity_section

__all__ = ["results_latency", "results_layers", "write_report"]

PICTURE_BYTES = 1_300_000
SLOWEST = 15
_COSTS = (
    ("macs", "multiply–accumulates", as_count, "modelled"),
    ("active_macs", "multiply–accumulates as routed", as_count, "measured"),
    ("parameters", "parameters", as_count, "modelled"),
    ("peak_activation_bytes", "peak activation memory", as_bytes, "modelled"),
    ("bundle_bytes", "bundle on disk", as_bytes, "measured"),
)
_BUDGETS = {"macs": ("MACs", as_count), "params": ("parameters", as_count), "latency": ("ms", lambda v: f"{v:.3g}")}


def write_report(results: Mapping[str, Any], pictures: Mapping[str, np.ndarray], path: Path) -> None:
    """Write the report to `path`, atomically.

    `pictures` holds ``image`` and ``truth_<task>``, ``before_<task>``, ``after_<task>``, each (K, H, W, 3) uint8; the
    first few samples are shown, scaled down so that the file stays under 2 MB. Raises `UserError` if a picture has
    another shape or type, or the file cannot be written.
    """
    for name, stack in pictures.items():
        if not isinstance(stack, np.ndarray) or stack.dtype != np.uint8 or stack.ndim != 4 or stack.shape[-1] != 3:
            kind = f"{stack.dtype} {stack.shape}" if isinstance(stack, np.ndarray) else type(stack).__name__
            raise UserError(f"report: picture {name!r} is {kind}: give uint8 (K, H, W, 3)")
    write_page("report.html.j2", _view(results, pictures), path)


def _view(results: Mapping[str, Any], pictures: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the template shows: every number already words."""
    return {
        "title": results.get("title") or "Compression report",
        "subtitle": _subtitle(results),
        "summary": _summary(results),
        "budget": _budget(results.get("budget")),
        "costs": _costs(results.get("cost")),
        "cost_note": _cost_note(results),
        "tasks": _tasks(results),
        "latency": _latency(results.get("latency")),
        "devices": devices_section(results.get("devices")),
        "changes": changes_section(results),
        "layers": _layers(results.get("layers")),
        "experts": experts_section(results.get("experts")),
        "routing": routing_section(results.get("routing")),
        "fpga": fpga_sections(results.get("fpga")),
        "quantization": quantization_section(results.get("quantization")),
        "sensitivity": sensitivity_section(results.get("sensitivity")),
        "blocked": blocked_section(results.get("blocked")),
        "samples": _samples(pictures),
        "passes": [_step(step) for step in results.get("passes") or ()],
        "provenance": _provenance(results),
        "job": json_text(results.get("job")),
    }


def _cost_note(results: Mapping[str, Any]) -> str:
    """What the figures before compression are of, where tasks went."""
    return "; before: the original network, running the tasks that are left" if results.get("dropped_tasks") else ""


def _subtitle(results: Mapping[str, Any]) -> str:
    tasks, steps = results.get("tasks") or {}, results.get("passes") or ()
    parts = [f"{len(tasks)} tasks: {', '.join(tasks)}" if len(tasks) > 1 else ", ".join(tasks)]
    parts.append(" → ".join(str(step["name"]) for step in steps))
    return " · ".join(part for part in parts if part)


def _summary(results: Mapping[str, Any]) -> dict[str, Any]:
    tiles, words = [], []
    cost, latency = results.get("cost") or {}, results.get("latency") or {}
    for key, label in (("macs", "MACs"), ("parameters", "Parameters")):
        before, after = _pair(cost, key)
        if before and after is not None:
            note = f"{as_count(before)} → {as_count(after)}"
            tiles.append(tile(label, as_percent(after / before, 0), note, "modelled"))
            if key == "macs":
                words.append(
                    f"The network does its work with {as_percent(after / before, 0)} of the multiply–accumulates"
                )
    if latency.get("speedup"):
        median = {side: (latency.get(side) or {}).get("median_ms") for side in ("before", "after")}
        note = f"{as_number(median['before'])} → {as_number(median['after'])} ms" if all(median.values()) else ""
        tiles.append(tile("Latency", as_times(latency["speedup"]), note, latency.get("kind", "measured")))
        where = (latency.get("device") or {}).get("cpu") or (latency.get("device") or {}).get("name") or "this machine"
        verb = "runs" if latency.get("kind", "measured") == "measured" else f"is {latency['kind']} to run"
        words.append(f"{verb if words else 'It ' + verb} {latency['speedup']:.1f} times as fast on {where}")
    sentences = [" and ".join(words) + "."] if words else []
    tasks = results.get("tasks") or {}
    judged = [task["within"] for task in tasks.values() if task.get("within") is not None]
    change = (results.get("delta_m") or {}).get("vs_original")
    if change is not None:
        tone = "bad" if judged and not all(judged) else ""
        tiles.append(tile("Δm", as_change(change), "mean change of the tasks", None, tone))
        worse = "worse" if change < 0 else "better"
        sentences.append(f"On average its tasks are {abs(change):.2f} % {worse} than before (Δm).")
    if judged:
        kept = sum(judged)
        tiles.append(
            tile(
                "Limits kept", f"{kept} of {len(judged)}", "tasks with a limit", None, "good" if all(judged) else "bad"
            )
        )
        sentences.append("All limits kept." if all(judged) else f"{len(judged) - kept} of {len(judged)} limits missed.")
    return {"words": " ".join(sentences), "tiles": tiles, **_verdict(results, judged)}


def _verdict(results: Mapping[str, Any], judged: list[bool]) -> dict[str, Any]:
    budget, missed = results.get("budget"), []
    if budget and not budget.get("met", True):
        missed.append(budget.get("missed") or "The budget was not met.")
    for name, task in (results.get("tasks") or {}).items():
        if task.get("within") is False:
            change = f"{as_number(task['before'])} → {as_number(task['after'])} {task.get('unit') or ''}".strip()
            missed.append(f"{name}: {task['metric']} {change}, its limit was {task.get('limit')}.")
    missed += [f"INT8: {line}." for line in missed_in_int8(results)]
    parts = ["the budget is met"] if budget else []
    if judged:
        parts.append("every task kept its limit")
    text = " and ".join(parts)
    return {"missed": missed, "verdict": f"{text[:1].upper()}{text[1:]}." if text else ""}


def _pair(cost: Mapping[str, Any], key: str) -> tuple[Any, Any]:
    return (cost.get("before") or {}).get(key), (cost.get("after") or {}).get(key)


def _budget(budget: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not budget:
        return None
    unit, show = _BUDGETS[budget["kind"]]
    original, target, reached = (float(budget[key]) for key in ("original", "target", "reached"))
    largest = max(original, target, reached)
    words = (
        f"Asked for at most {show(target)} {unit} ({as_percent(target / original, 0)} of the original's {show(original)}); "
        f"reached {show(reached)} ({as_percent(reached / original)})."
    )
    where = 100 * target / largest
    return {
        "words": words,
        "reached": round(100 * reached / largest, 2),
        "target": round(where, 2),
        "target_text": f"{show(target)} {unit}",
        "align": "end" if where > 75 else "start" if where < 25 else "",
    }


def _costs(cost: Mapping[str, Any] | None) -> list[dict[str, str]]:
    rows = []
    for key, label, show, kind in _COSTS:
        before, after = _pair(cost or {}, key)
        if before is None and after is None:
            continue
        share = as_percent(after / before) if before and after is not None else "–"
        rows.append({"label": label, "before": show(before), "after": show(after), "share": share, "kind": kind})
    return rows


def _tasks(results: Mapping[str, Any]) -> dict[str, Any] | None:
    tasks, rows, changes = results.get("tasks"), [], []
    if not tasks:
        return None
    for name, task in tasks.items():
        before, after, sign = task["before"], task["after"], 1 if task["higher_is_better"] else -1
        gain = sign * 100 * (after - before) / abs(before) if before and _finite(before, after) else None
        within, limit = task.get("within"), task.get("limit")
        rows.append(
            {
                "name": name,
                "metric": f"{task['metric']} ({task['unit']})" if task.get("unit") else task["metric"],
                "arrow": "↑" if task["higher_is_better"] else "↓",
                "before": as_number(before),
                "after": as_number(after),
                "change": as_change(gain),
                "limit": "–" if limit is None else str(limit),
                "verdict": {True: "kept", False: "missed", None: ""}[within],
                "tone": {True: "good", False: "bad", None: ""}[within],
                "single": as_number(task.get("single_task")),
                "constant": as_number(task.get("constant")),
            }
        )
        if gain is not None:
            changes.append((name, gain, _limit_percent(limit, before), within))
    from mtlc.report.figures.charts import task_changes

    return {
        "rows": rows,
        "words": _delta_words(results.get("delta_m") or {}),
        "single": any(task.get("single_task") is not None for task in tasks.values()),
        "constant": any(task.get("constant") is not None for task in tasks.values()),
        "svg": task_changes(changes) if changes else None,
    }


def _delta_words(delta: Mapping[str, Any]) -> str:
    parts = ["The change column counts an improvement as positive whichever way the metric points."]
    if delta.get("vs_original") is not None:
        parts.append(f"Their mean, Δm, is {as_change(delta['vs_original'])} against the original network")
        if delta.get("vs_single_task") is not None:
            parts[-1] += f" and {as_change(delta['vs_single_task'])} against one network per task"
        parts[-1] += "."
    return " ".join(parts)


def _limit_percent(limit: Any, before: float) -> float | None:
    """A limit such as "1%" or "0.02" as a negative change in percent of the metric before."""
    if limit is None:
        return None
    text = str(limit).strip()
    try:
        return -float(text[:-1]) if text.endswith("%") else -100 * float(text) / abs(before)
    except ValueError:
        return None


def _latency(latency: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not latency:
        return None
    from mtlc.report.figures.charts import latency_bars, layer_times
    from mtlc.report.figures.svg import AFTER, BEFORE

    kind = latency.get("kind", "measured")
    rows: list[Any] = [
        (
            side,
            *(float(latency[side].get(key, latency[side]["median_ms"])) for key in ("median_ms", "p10_ms", "p90_ms")),
            colour,
        )
        for side, colour in (("before", BEFORE), ("after", AFTER))
        if latency.get(side)
    ]
    ideal = (
        float(latency["before"]["median_ms"]) / latency["ideal"]
        if latency.get("ideal") and latency.get("before")
        else None
    )
    layers = [
        (str(layer["name"]) or "(network)", layer.get("before_ms"), layer.get("after_ms"))
        for layer in latency.get("layers") or ()
    ]
    slowest = sorted(layers, key=lambda layer: -max(layer[1] or 0.0, layer[2] or 0.0))[:SLOWEST]
    return {
        "kind": kind,
        "words": _latency_words(latency, kind),
        "svg": latency_bars(rows, ideal) if rows else None,
        "costs": running_costs(latency),
        "instructions_why": latency.get("instructions_why"),
        "layers_svg": layer_times(slowest) if slowest else None,
        "layers_note": f"The {len(slowest)} slowest of {len(layers)} layers, from the runtime's own profile."
        if len(layers) > len(slowest)
        else "From the runtime's own profile.",
    }


def _latency_words(latency: Mapping[str, Any], kind: str) -> str:
    device = latency.get("device") or {}
    where = device.get("cpu") or device.get("name") or "this machine"
    threads, batch, rounds = (latency.get(key) for key in ("threads", "batch", "rounds"))
    parts = [
        f"onnxruntime {device['onnxruntime']}" if device.get("onnxruntime") else "",
        f"{threads} thread{'s' if threads != 1 else ''}" if threads else "",
        f"batch {batch}" if batch else "",
    ]
    parts.append(f"{rounds} rounds, before and after in turns" if rounds else "")
    words = f"{kind.capitalize()} on {where} ({', '.join(part for part in parts if part)})."
    if latency.get("speedup"):
        words += f" Speed-up {as_times(latency['speedup'])}"
        words += f"; {as_times(latency['ideal'])} if time fell as MACs did." if latency.get("ideal") else "."
    return words


def _layers(layers: Any) -> dict[str, Any] | None:
    if not layers:
        return None
    # A bar is the layer's channels on the scale of the widest layer.
    widest = (
        max((layer.get(key) or 0 for layer in layers for key in ("channels_before", "channels_after")), default=0) or 1
    )
    rows, narrowed = [], 0
    for layer in layers:
        old, new = layer.get("channels_before"), layer.get("channels_after")
        narrowed += old is not None and new is not None and new < old
        macs_before, macs_after = layer.get("macs_before"), layer.get("macs_after")
        rows.append(
            {
                "name": layer["name"] or "(network)",
                "channels": ""
                if old is None and new is None
                else str(new)
                if old == new
                else f"{old or '–'} → {new or '–'}",
                "bar_before": round(100 * (old or 0) / widest, 1),
                "bar_after": round(100 * (new or 0) / widest, 1),
                "macs_before": as_count(macs_before),
                "macs_after": as_count(macs_after),
                "macs_left": _share(macs_before, macs_after),
                "params_left": _share(layer.get("params_before"), layer.get("params_after")),
            }
        )
    words = f"{narrowed} of {len(rows)} layers have fewer output channels than before."
    return {"rows": rows, "words": words, "fold": len(rows) > 24}


def _share(before: Any, after: Any) -> str:
    return as_percent(after / before, 0) if before and after is not None else "–"


def _samples(pictures: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    if not pictures:
        return []
    from mtlc.report.figures.svg import picture_uris

    uris = picture_uris(pictures, PICTURE_BYTES)
    roles = ("truth", "before", "after")
    tasks = dict.fromkeys(name.partition("_")[2] for name in uris if name.partition("_")[0] in roles)
    count = max((len(stack) for stack in uris.values()), default=0)

    def at(name: str, index: int) -> str | None:
        stack = uris.get(name, [])
        return stack[index] if index < len(stack) else None

    return [
        {
            "input": at("image", index),
            "tasks": [{"name": task, **{role: at(f"{role}_{task}", index) for role in roles}} for task in tasks],
        }
        for index in range(count)
    ]


def _step(step: Mapping[str, Any]) -> dict[str, Any]:
    seconds = step.get("seconds")
    return {
        "name": step["name"],
        "config": json_text(step.get("config")),
        "report": json_text(step.get("report")),
        "seconds": None if seconds is None else as_duration(seconds),
    }


def _provenance(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    versions = {"mtlc": mtlc.__version__, **(results.get("versions") or {})}
    rows = [(name, str(version)) for name, version in versions.items()]
    device = (results.get("latency") or {}).get("device") or {}
    return rows + [
        (key, str(device[key]))
        for key in ("cpu", "cores", "system", "machine", "load_1min")
        if device.get(key) is not None
    ]


def _finite(*values: float) -> bool:
    return all(math.isfinite(value) for value in values)
