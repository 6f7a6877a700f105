"""Lays out the report's comparison of devices: a table, and a roofline plot for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlc.report.parts.numbers import as_number, as_percent, as_times, marked
from mtlc.results.devices import DeviceLayer, DeviceResult
from mtlc.results.run import RunResults

_WAITS = {"compute": "arithmetic", "memory": "memory", "launch": "launches"}
_SHOWN = 0.1


def devices_section(results: RunResults) -> dict[str, Any] | None:
    """A row and a plot for each device, and how far to trust them; None without devices."""
    found = results.devices
    if not found:
        return None
    from mtlc.report.figures.roofline import roofline, slowest

    doubtful = results.latency is not None and bool(results.latency.why_in_doubt())
    return {
        "rows": [_row(entry, doubtful and entry.kind == "measured") for entry in found],
        "plots": [
            {
                "title": entry.title,
                "kind": entry.kind,
                "svg": svg,
                "slowest": [_slow(layer) for layer in slowest(entry)] if svg else [],
                "notes": entry.notes,
            }
            for entry in found
            if (svg := roofline(entry)) is not None or entry.notes
        ],
        "modelled": any(entry.kind == "modelled" for entry in found),
    }


def _row(entry: DeviceResult, in_doubt: bool) -> dict[str, Any]:
    return {
        "title": entry.title,
        "name": entry.device,
        "precision": entry.precision,
        "before": marked(as_number(entry.before_ms), in_doubt),
        "after": marked(as_number(entry.after_ms), in_doubt),
        "speedup": marked(as_times(entry.speedup), in_doubt),
        "kind": entry.kind,
        "error": _error(entry),
        "waits": _waits(entry.bounds),
    }


def _slow(layer: DeviceLayer) -> str:
    waits = f", waits for {_WAITS[layer.bound]}" if layer.bound else ""
    return f"{layer.name or '(network)'} {as_number(layer.ms)} ms{waits}"


def _error(entry: DeviceResult) -> list[str]:
    """How far the time may be off, a line each."""
    if entry.kind != "modelled":
        return []
    error = entry.error
    if error is None:
        return ["error not known"]
    off = f"±{as_percent(error.median, 0)} (p90 {as_percent(error.p90, 0)})"
    outside = [f"this one is {entry.outside_fit}"] if entry.outside_fit else []
    return [off, f"on {error.held_out} held out", *outside]


def _waits(bounds: Mapping[str, float] | None) -> str:
    """The parts of the time of a tenth or more, largest first: "memory 71 %, launches 22 %"."""
    parts = sorted((bounds or {}).items(), key=lambda part: -part[1])
    return (
        ", ".join(f"{_WAITS[name]} {as_percent(share, 0)}" for name, share in parts if share >= _SHOWN) or "not known"
    )
