"""The page of ``mtlc compare``: two bundles side by side, one HTML file in the manner of the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtlc.report.parts.numbers import DASH, as_bytes, as_change, as_count, as_number, as_percent, as_times
from mtlc.report.parts.page import json_text, tile, write_page

_LABELS = ("A", "B")
_FOLD = 24


def write_comparison(result: Mapping[str, Any], path: Path) -> None:
    """Write what `mtlc.workflows.compare.compare` found as a page to `path`, atomically.

    Raises `UserError` if the file cannot be written.
    """
    write_page("compare.html.j2", _view(result), path)


def _view(result: Mapping[str, Any]) -> dict[str, Any]:
    sides = [(label, result[label]) for label in _LABELS]
    return {
        "title": "Two bundles side by side",
        "subtitle": " · ".join(f"{label}: {side['bundle']}" for label, side in sides),
        "summary": _summary(result),
        "notes": result["notes"],
        "tasks": [_task(name, found) for name, found in result["tasks"].items()],
        "costs": _costs(result),
        "latency": _latency(result),
        "layers": _layers(result["layers"]),
        "agreement": _agreement(result),
        "differs": [{"what": row["what"], "a": row["a"] or DASH, "b": row["b"] or DASH} for row in result["differs"]],
        "passes": [
            {"label": label, "steps": [{"name": step["name"],
            "config": json_text(step["config"])} for step in side["passes"]]}
            for label, side in sides
            if side["passes"]
        ],
        "provenance": _provenance(result),
        "job": None,
    }  # fmt: skip


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    cost, latency, tiles = result["cost"], result["latency"], []
    for key, label, show, kind in (
        ("macs", "MACs", as_count, "modelled"),
        ("parameters", "Parameters", as_count, "modelled"),
        ("bytes", "Bundle", as_bytes, "measured"),
    ):
        old, new = (cost[side][key] for side in _LABELS)
        if old and new is not None:
            tiles.append(tile(label, as_percent(new / old, 0), f"{show(old)} → {show(new)}", kind))
    old, new = (latency["bundles"][side]["median_ms"] for side in _LABELS)
    tiles.append(tile("Latency", as_percent(new / old, 0), f"{as_number(old)} → {as_number(new)} ms", "measured"))
    peaks = [result["memory"][side]["peak_bytes"] for side in _LABELS]
    if None not in peaks:
        tiles.append(
            tile("Peak memory", as_percent(peaks[1] / peaks[0], 0), " → ".join(map(as_bytes, peaks)), "measured")
        )
    words = "What B is of A"
    faster = latency["speedup"].get("B")
    if faster is not None:
        words += f": {as_times(faster['median'])} as fast, measured in turns"
    return {"words": f"{words}.", "tiles": tiles}


def _task(name: str, found: Mapping[str, Any]) -> dict[str, str]:
    sides = [found[label] for label in _LABELS]
    known = next(side for side in sides if side is not None)
    metric = f"{known['metric']} ({known['unit']})" if known["unit"] else known["metric"]
    shown = ["absent" if side is None else as_number(side["after"]) for side in sides]
    change = None if found["change"] is None else 100 * found["change"]
    return {
        "name": name,
        "metric": metric,
        "a": shown[0],
        "b": shown[1],
        "change": as_change(change) if change is not None else DASH,
    }


def _costs(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row for each figure: what it is, both sides, B as a share of A, and its kind."""
    cost, memory = result["cost"], result["memory"]
    bundles = result["latency"]["bundles"]
    rows = [
        _row("multiply–accumulates", [cost[label]["macs"] for label in _LABELS], as_count, "modelled"),
        _row("parameters", [cost[label]["parameters"] for label in _LABELS], as_count, "modelled"),
        _row("bundle on disk", [cost[label]["bytes"] for label in _LABELS], as_bytes, "measured"),
        _row("latency, ms", [bundles[label]["median_ms"] for label in _LABELS], as_number, "measured"),
        _row("CPU time, ms", [bundles[label]["cpu_median_ms"] for label in _LABELS], as_number, "measured"),
    ]
    counted = [bundles[label]["instructions"] for label in _LABELS]
    if None not in counted:
        rows.append(_row("instructions retired", [one["median"] for one in counted], as_count, "measured"))
    for key, what in (("added_bytes", "memory that it adds"), ("peak_bytes", "peak memory of its process")):
        rows.append(_row(what, [memory[label][key] for label in _LABELS], as_bytes, "measured"))
    rows.append(_row("cold start, ms", [memory[label]["cold_ms"] for label in _LABELS], as_number, "measured"))
    return rows


def _row(label: str, values: list[Any], show: Any, kind: str) -> dict[str, str]:
    old, new = values
    share = as_percent(new / old) if old and new is not None else DASH
    return {"label": label, "a": show(old), "b": show(new), "share": share, "kind": kind}


def _latency(result: Mapping[str, Any]) -> dict[str, Any]:
    from mtlc.report.figures.charts import latency_bars
    from mtlc.report.figures.svg import AFTER, BEFORE

    latency = result["latency"]
    bars: list[Any] = [
        (label, *(float(latency["bundles"][label][key]) for key in ("median_ms", "p10_ms", "p90_ms")), colour)
        for label, colour in zip(_LABELS, (BEFORE, AFTER), strict=True)
    ]
    backend, threads = latency["backend"], latency["threads"]
    how = "in turns on the same input" if latency["in_turns"] else "one after the other, each on its own input"
    words = f"Measured on {latency['device']['cpu']} ({backend['name']} {backend['version'] or ''}".rstrip()
    words += f", {threads} thread{'s' if threads != 1 else ''}, batch {latency['batch']}, "
    words += f"{latency['rounds']} rounds), {how}."
    return {"words": words, "svg": latency_bars(bars, None, "Latency of A and B"), "why": latency["instructions_why"]}


def _layers(layers: list[Mapping[str, Any]]) -> dict[str, Any]:
    slowest = max((side["ms"] or 0.0 for row in layers for side in (row["A"], row["B"]) if side), default=0.0) or 1.0
    rows = []
    for row in layers:
        entry: dict[str, Any] = {"name": row["name"] or "(network)"}
        for label in _LABELS:
            side = row[label] or {"macs": None, "ms": None}
            entry[label] = {
                "macs": as_count(side["macs"]),
                "ms": as_number(side["ms"]),
                "bar": round(100 * (side["ms"] or 0.0) / slowest, 1),
            }
        rows.append(entry)
    alone = [sum(row[label] is None for row in layers) for label in _LABELS]
    words = f"{len(layers) - sum(alone)} layers are in both, {alone[1]} only in A, {alone[0]} only in B."
    return {"rows": rows, "words": words, "fold": len(rows) > _FOLD}


def _agreement(result: Mapping[str, Any]) -> dict[str, Any] | None:
    if result["agreement"] is None:
        return None
    rows = [
        {"task": task, "max_rel": DASH if one["max_rel"] is None else f"{one['max_rel']:.1e}", "why": one["why"] or ""}
        for task, one in result["agreement"].items()
    ]
    return {"rows": rows, "inputs": result["agreement_inputs"]}


def _provenance(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for label in _LABELS:
        side = result[label]
        rows.append((label, side["bundle"]))
        rows.append(
            (f"{label} made by", ", ".join(f"{name} {version}" for name, version in side["versions"].items()) or DASH)
        )
        if side["results"] is not None:
            rows.append((f"{label} results", side["results"]))
    device = result["latency"]["device"]
    return rows + [
        (key, str(device[key])) for key in ("cpu", "cores", "system", "machine", "load_1min") if device[key] is not None
    ]
