"""The report's sections on what a compression changed as a whole: layers by kind, experts, and the cost of running."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mtlc.report.parts.numbers import DASH, as_bytes, as_count, as_number, as_percent

_FATES = ("gone", "added", "narrowed", "lighter", "unchanged")
_SIDES = ("before", "after")


def changes_section(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Per kind of layer and in total: how many went, were narrowed, do less or stayed, and their MACs and parameters.

    None without the layers of both networks.
    """
    layers = results.get("layers")
    if not layers:
        return None
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for layer in layers:
        kinds.setdefault(str(layer.get("kind") or DASH), []).append(layer)
    fates = [fate for fate in _FATES if any(_fate(layer) == fate for layer in layers)]
    rows = [_row(kind, group, fates) for kind, group in kinds.items()]
    if len(rows) > 1:
        rows.append(_row("all", layers, fates))
    return {"fates": fates, "rows": rows, "words": _words(layers, fates, results.get("experts"))}


def running_costs(latency: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row for each cost besides latency that was measured on both sides: instructions, memory, start."""
    shown: list[tuple[str, Callable[[Mapping[str, Any]], Any], Callable[[Any], str]]] = [
        ("instructions retired, one call", lambda side: (side.get("instructions") or {}).get("median"), as_count),
        ("memory that the bundle adds", lambda side: (side.get("memory") or {}).get("added_bytes"), as_bytes),
        ("peak memory of its process", lambda side: (side.get("memory") or {}).get("peak_bytes"), as_bytes),
        ("cold start and first call, ms", lambda side: (side.get("memory") or {}).get("cold_ms"), as_number),
    ]
    rows = []
    for label, find, show in shown:
        before, after = (find(latency.get(side) or {}) for side in _SIDES)
        if before and after is not None:
            share = as_percent(after / before)
            rows.append({"label": label, "before": show(before), "after": show(after), "share": share})
    return rows


def _fate(layer: Mapping[str, Any]) -> str:
    """What became of a layer: "lighter" has its channels and does less, as behind one that was narrowed."""
    if layer.get("macs_after") is None:
        return "gone"
    if layer.get("macs_before") is None:
        return "added"
    old, new = (layer.get(f"channels_{side}") for side in _SIDES)
    if old is not None and new is not None and new < old:
        return "narrowed"
    less = any((layer.get(f"{key}_after") or 0) < (layer.get(f"{key}_before") or 0) for key in ("macs", "params"))
    return "lighter" if less else "unchanged"


def _row(kind: str, layers: Sequence[Mapping[str, Any]], fates: Sequence[str]) -> dict[str, Any]:
    counts = [sum(_fate(layer) == fate for layer in layers) for fate in fates]
    row: dict[str, Any] = {"kind": kind, "layers": len(layers), "counts": counts}
    for key in ("macs", "params"):
        before, after = (sum(layer.get(f"{key}_{side}") or 0 for layer in layers) for side in _SIDES)
        row[f"{key}_before"], row[f"{key}_after"] = as_count(before), as_count(after)
        row[f"{key}_left"] = as_percent(after / before, 0) if before else DASH
    return row


def _words(layers: Sequence[Mapping[str, Any]], fates: Sequence[str], experts: Mapping[str, Any] | None) -> str:
    counts = {fate: sum(_fate(layer) == fate for layer in layers) for fate in fates}
    words = (
        f"Of {len(layers)} layers that multiply, {', '.join(f'{n} {_PHRASES[fate]}' for fate, n in counts.items())}."
    )
    if experts and experts.get("layers"):
        whole = sum(layer["experts"] for layer in experts["layers"])
        gone = whole - sum(len(layer["kept"]) for layer in experts["layers"])
        words += f" {gone} of {whole} experts are gone."
    return words


_PHRASES = {
    "gone": "are gone",
    "added": "were added",
    "narrowed": "have fewer output channels",
    "lighter": "have their channels and less to do",
    "unchanged": "are as they were",
}
