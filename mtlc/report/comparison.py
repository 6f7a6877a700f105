"""Writes the page of ``mtlc compare``: two bundles side by side, one HTML file in the manner of the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mtlc.report.parts.numbers import (
    DASH,
    as_bytes,
    as_change,
    as_count,
    as_number,
    as_percent,
    as_times,
    marked,
)
from mtlc.report.parts.page import json_text, tile, write_page
from mtlc.report.sections.latency import doubts_words, ratio_words
from mtlc.report.sections.provenance import load_facts, machine_facts
from mtlc.results.compare import Comparison, LayerCost, LayerPair, TaskPair, TurnLatencies
from mtlc.results.latency import cpu_in_doubt, said_doubts

_LABELS = ("A", "B")
_FOLD = 24


def write_comparison(result: Comparison, path: Path) -> None:
    """Write what `mtlc.workflows.compare.compare` found as a page to `path`, atomically.

    Raises `UserError` if the file cannot be written.
    """
    write_page("compare.html.j2", _view(result), path)


def _view(result: Comparison) -> dict[str, Any]:
    """What the template shows: every number already words."""
    sides = (("A", result.A), ("B", result.B))
    return {
        "title": "Two bundles side by side",
        "subtitle": " · ".join(f"{label}: {side.bundle}" for label, side in sides),
        "summary": _summary(result),
        "notes": result.notes,
        "tasks": [_task(name, found) for name, found in result.tasks.items()],
        "costs": _costs(result),
        "latency": _latency(result.latency),
        "layers": _layers(result.layers),
        "agreement": _agreement(result),
        "differs": [{"what": row.what, "values": [row.a or DASH, row.b or DASH]} for row in result.differs],
        "passes": [
            {"label": label, "steps": [{"name": one.name, "config": json_text(one.config)} for one in side.passes]}
            for label, side in sides
            if side.passes
        ],
        "provenance": _provenance(result),
        "job": None,
    }


def _summary(result: Comparison) -> dict[str, Any]:
    old, new, tiles = result.cost.A, result.cost.B, []
    for label, before, after, show, kind in (
        ("MACs", old.macs, new.macs, as_count, "modelled"),
        ("Parameters", old.parameters, new.parameters, as_count, "modelled"),
        ("Bundle", old.bytes, new.bytes, as_bytes, "measured"),
    ):
        if before and after is not None:
            tiles.append(tile(label, as_percent(after / before, 0), f"{show(before)} → {show(after)}", kind))
    faster, doubtful = result.latency.speedup.get("B"), bool(_doubts(result.latency))
    if faster is not None:
        note = ratio_words(faster) + (" · in doubt" if doubtful else "")
        tiles.append(tile("Latency", marked(as_times(faster.median), doubtful), note, "measured"))
    peaks = (result.memory.A.peak_bytes, result.memory.B.peak_bytes)
    if peaks[0] is not None and peaks[1] is not None:
        shown = " → ".join(map(as_bytes, peaks))
        tiles.append(tile("Peak memory", as_percent(peaks[1] / peaks[0], 0), shown, "measured"))
    words = "What B is of A"
    if faster is not None:
        words += f": {marked(as_times(faster.median), doubtful)} as fast, measured in turns"
    return {"words": f"{words}.", "tiles": tiles}


def _task(name: str, found: TaskPair) -> dict[str, str]:
    sides = (found.A, found.B)
    known = next(side for side in sides if side is not None)
    shown = ["absent" if side is None else as_number(side.after) for side in sides]
    return {
        "name": name,
        "metric": f"{known.metric} ({known.unit})" if known.unit else known.metric,
        "a": shown[0],
        "b": shown[1],
        "change": as_change(100 * found.change) if found.change is not None else DASH,
    }


def _costs(result: Comparison) -> list[dict[str, str]]:
    """A row for each figure: what it is, both sides, B as a share of A, and its kind."""
    cost, memory = (result.cost.A, result.cost.B), (result.memory.A, result.memory.B)
    ratio, doubtful = result.latency.speedup.get("B"), bool(_doubts(result.latency))
    times = [result.latency.bundles[label] for label in _LABELS]
    rows = [
        _row("multiply–accumulates", [one.macs for one in cost], as_count, "modelled"),
        _row("parameters", [one.parameters for one in cost], as_count, "modelled"),
        _row("bundle on disk", [one.bytes for one in cost], as_bytes, "measured"),
        _time_row("latency, ms", [one.median_ms for one in times], None if ratio is None else ratio.median, doubtful),
        _time_row(
            "CPU time, ms",
            [one.cpu_median_ms for one in times],
            None if ratio is None else ratio.cpu,
            ratio is not None and cpu_in_doubt(ratio, times[0], times[1]),
        ),
    ]
    counted = [one.instructions.median for one in times if one.instructions is not None]
    if len(counted) == len(times):
        rows.append(_row("instructions retired", counted, as_count, "measured"))
    return [
        *rows,
        _row("memory that it adds", [one.added_bytes for one in memory], as_bytes, "measured"),
        _row("peak memory of its process", [one.peak_bytes for one in memory], as_bytes, "measured"),
        _time_row("cold start, ms", [one.cold_ms for one in memory], None, False),  # not measured in turns
    ]


def _row(label: str, values: Sequence[float | None], show: Callable[[float | None], str], kind: str) -> dict[str, str]:
    old, new = values
    share = as_percent(new / old) if old and new is not None else DASH
    return {"label": label, "a": show(old), "b": show(new), "share": share, "kind": kind}


def _time_row(label: str, values: Sequence[float | None], ratio: float | None, in_doubt: bool) -> dict[str, str]:
    """Times of both. B's share is by the ratio of the rounds; a dash where they did not run in turns."""
    old, new = (marked(as_number(value), in_doubt) for value in values)
    share = marked(as_percent(1 / ratio), in_doubt) if ratio else DASH
    return {"label": label, "a": old, "b": new, "share": share, "kind": "measured"}


def _doubts(latency: TurnLatencies) -> list[str]:
    return said_doubts(latency.doubts, latency.speedup)


def _latency(latency: TurnLatencies) -> dict[str, Any]:
    from mtlc.report.figures.charts import latency_bars
    from mtlc.report.figures.svg import AFTER, BEFORE

    times = [latency.bundles[label] for label in _LABELS]
    bars: list[Any] = [
        (label, one.median_ms, one.p10_ms, one.p90_ms, colour)
        for label, one, colour in zip(_LABELS, times, (BEFORE, AFTER), strict=True)
    ]
    backend, threads = latency.backend, latency.threads
    how = "in turns on the same input" if latency.in_turns else "one after the other, each on its own input"
    words = f"Measured on {latency.device.cpu} ({backend.name} {backend.version or ''}".rstrip()
    words += f", {threads} thread{'s' if threads != 1 else ''}, batch {latency.batch}, "
    words += f"{latency.rounds} rounds), {how}."
    return {
        "words": words,
        "doubts": doubts_words(_doubts(latency)),
        "svg": latency_bars(bars, None, "Latency of A and B"),
        "why": latency.instructions_why,
    }


def _layers(layers: Sequence[LayerPair]) -> dict[str, Any]:
    slowest = max((side.ms or 0.0 for row in layers for side in (row.A, row.B) if side), default=0.0) or 1.0
    rows = [
        {"name": row.name or "(network)", "A": _layer(row.A, slowest), "B": _layer(row.B, slowest)} for row in layers
    ]
    only_a, only_b = sum(row.B is None for row in layers), sum(row.A is None for row in layers)
    words = f"{len(layers) - only_a - only_b} layers are in both, {only_a} only in A, {only_b} only in B."
    return {"rows": rows, "words": words, "fold": len(rows) > _FOLD}


def _layer(side: LayerCost | None, slowest: float) -> dict[str, Any]:
    macs, ms = (None, None) if side is None else (side.macs, side.ms)
    return {"macs": as_count(macs), "ms": as_number(ms), "bar": round(100 * (ms or 0.0) / slowest, 1)}


def _agreement(result: Comparison) -> dict[str, Any] | None:
    if result.agreement is None:
        return None
    rows = [
        {"task": task, "max_rel": DASH if one.max_rel is None else f"{one.max_rel:.1e}", "why": one.why or ""}
        for task, one in result.agreement.items()
    ]
    return {"rows": rows, "inputs": result.agreement_inputs}


def _provenance(result: Comparison) -> list[tuple[str, str]]:
    rows = []
    for label, side in (("A", result.A), ("B", result.B)):
        versions = ", ".join(f"{name} {version}" for name, version in side.versions.items())
        rows += [(label, side.bundle), (f"{label} made by", versions or DASH)]
        if side.results is not None:
            rows.append((f"{label} results", side.results))
    return rows + machine_facts(result.latency.device) + load_facts(result.latency.load)
