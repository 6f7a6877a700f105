"""Lays out the report's section on latency: both networks on this machine, and the layers that take the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mtlc.report.parts.numbers import DASH, as_bytes, as_count, as_number, as_percent, as_times, marked
from mtlc.results.latency import BundleLatency, LatencyResult, Ratio, cpu_in_doubt
from mtlc.results.run import RunResults

SLOWEST = 15


def latency_section(results: RunResults) -> dict[str, Any] | None:
    """Bars with their spread, what else running costs, and the slowest layers; None where nothing was measured."""
    latency = results.latency
    if latency is None:
        return None
    from mtlc.report.figures.charts import latency_bars, layer_times
    from mtlc.report.figures.svg import AFTER, BEFORE

    sides = (("before", latency.before, BEFORE), ("after", latency.after, AFTER))
    rows = [(name, *_spread(side), colour) for name, side, colour in sides if side is not None]
    ideal = latency.before.median_ms / latency.ideal if latency.ideal and latency.before else None
    layers = [(layer.name or "(network)", layer.before_ms, layer.after_ms) for layer in latency.layers]
    slowest = sorted(layers, key=lambda layer: -max(layer[1] or 0.0, layer[2] or 0.0))[:SLOWEST]
    return {
        "kind": latency.kind,
        "words": _words(latency),
        "svg": latency_bars(rows, ideal) if rows else None,
        "timed": latency.ratio is not None,
        "doubts": doubts_words(latency.why_in_doubt()),
        "costs": [*_times(latency), *running_costs(latency)],
        "instructions_why": latency.instructions_why,
        "layers_svg": layer_times(slowest) if slowest else None,
        "layers_note": f"The {len(slowest)} slowest of {len(layers)} layers, from the runtime's own profile."
        if len(layers) > len(slowest)
        else "From the runtime's own profile.",
    }


def doubts_words(doubts: Sequence[str]) -> str:
    """A sentence for the reader of a measured figure that is in doubt; empty if it is not."""
    if not doubts:
        return ""
    return f"≈ marks what is in doubt: {'; '.join(doubts)}. Measure again on a quiet machine (--wait-quiet)."


def ratio_words(ratio: Ratio) -> str:
    """The spread of a ratio, and the ratio by processor time: "×1.52 to ×1.71 · CPU time ×1.58"."""
    words = f"{as_times(ratio.p10)} to {as_times(ratio.p90)}"
    return words if ratio.cpu is None else f"{words} · CPU time {as_times(ratio.cpu)}"


def _times(latency: LatencyResult) -> list[dict[str, str]]:
    """Rows for the time by the clock and by processor time. What is left of it is by the ratio of the rounds: that of
    the two medians may be another one. None for files of earlier versions, which do not have it.
    """
    old, new, ratio = latency.before, latency.after, latency.ratio
    if ratio is None or old is None or new is None:
        return []
    doubtful = bool(latency.why_in_doubt())
    shown = [("time of a call, ms", old.median_ms, new.median_ms, ratio.median, doubtful)]
    if old.cpu_median_ms is not None and new.cpu_median_ms is not None:
        shown.append(
            (
                "CPU time of a call, ms",
                old.cpu_median_ms,
                new.cpu_median_ms,
                ratio.cpu or 0.0,
                cpu_in_doubt(ratio, old, new),
            )
        )
    return [
        {
            "label": label,
            "before": marked(as_number(before), mark),
            "after": marked(as_number(after), mark),
            "share": marked(as_percent(1 / times), mark) if times else DASH,
        }
        for label, before, after, times, mark in shown
    ]


def running_costs(latency: LatencyResult) -> list[dict[str, str]]:
    """A row for each cost besides latency that was measured on both sides: instructions, memory, start."""
    shown: list[tuple[str, Callable[[BundleLatency], float | None], Callable[[Any], str]]] = [
        (
            "instructions retired, one call",
            lambda side: None if (i := side.instructions) is None else i.median,
            as_count,
        ),
        ("memory that the bundle adds", lambda side: None if (m := side.memory) is None else m.added_bytes, as_bytes),
        ("peak memory of its process", lambda side: None if (m := side.memory) is None else m.peak_bytes, as_bytes),
        ("cold start and first call, ms", _cold_ms, as_number),
    ]
    rows = []
    for label, find, show in shown:
        before, after = (None if side is None else find(side) for side in (latency.before, latency.after))
        if before and after is not None:
            # Starts are not measured in turns: a share of two medians would be another statistic than the speed-up.
            paired = latency.ratio is None or find is not _cold_ms
            share = as_percent(after / before) if paired else DASH
            rows.append({"label": label, "before": show(before), "after": show(after), "share": share})
    return rows


def _cold_ms(side: BundleLatency) -> float | None:
    return None if side.memory is None else side.memory.cold_ms


def _spread(side: BundleLatency) -> tuple[float, float, float]:
    """Median, p10 and p90 in ms; the median stands in for those that are not known."""
    low, high = (side.median_ms if value is None else value for value in (side.p10_ms, side.p90_ms))
    return side.median_ms, low, high


def _words(latency: LatencyResult) -> str:
    device, threads = latency.device, latency.threads
    parts = [
        f"onnxruntime {device.onnxruntime}" if device.onnxruntime else "",
        f"{threads} thread{'s' if threads != 1 else ''}" if threads else "",
        f"batch {latency.batch}" if latency.batch else "",
        f"{latency.rounds} rounds, before and after in turns" if latency.rounds else "",
    ]
    where = device.cpu or device.name or "this machine"
    words = f"{latency.kind.capitalize()} on {where} ({', '.join(part for part in parts if part)})."
    if latency.speedup:
        words += f" Speed-up {marked(as_times(latency.speedup), bool(latency.why_in_doubt()))}"
        if latency.ratio is not None:
            words += f" in the median of the rounds ({ratio_words(latency.ratio)})"
        words += f"; {as_times(latency.ideal)} if time fell as MACs did." if latency.ideal else "."
    return words
