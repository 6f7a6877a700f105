"""Lays out the report's section on what a compression changed as a whole: layers by kind, and experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtlc.report.parts.numbers import DASH, as_count, as_percent
from mtlc.report.sections.layers import is_narrowed
from mtlc.results.cost import LayerPair
from mtlc.results.routing import ExpertsResult
from mtlc.results.run import RunResults

_FATES = ("gone", "added", "narrowed", "lighter", "unchanged")


def changes_section(results: RunResults) -> dict[str, Any] | None:
    """Per kind of layer and in total: how many went, were narrowed, do less or stayed, and their MACs and parameters.

    None without the layers of both networks.
    """
    layers = results.layers
    if not layers:
        return None
    kinds: dict[str, list[LayerPair]] = {}
    for layer in layers:
        kinds.setdefault(layer.kind or DASH, []).append(layer)
    fates = [fate for fate in _FATES if any(_fate(layer) == fate for layer in layers)]
    rows = [_row(kind, group, fates) for kind, group in kinds.items()]
    if len(rows) > 1:
        rows.append(_row("all", layers, fates))
    return {"fates": fates, "rows": rows, "words": _words(layers, fates, results.experts)}


def _fate(layer: LayerPair) -> str:
    """What became of a layer: "lighter" has its channels and does less, as behind one that was narrowed."""
    if layer.macs_after is None:
        return "gone"
    if layer.macs_before is None:
        return "added"
    if is_narrowed(layer):
        return "narrowed"
    less = layer.macs_after < layer.macs_before or (layer.params_after or 0) < (layer.params_before or 0)
    return "lighter" if less else "unchanged"


def _row(kind: str, layers: Sequence[LayerPair], fates: Sequence[str]) -> dict[str, Any]:
    counts = [sum(_fate(layer) == fate for layer in layers) for fate in fates]
    row: dict[str, Any] = {"kind": kind, "layers": len(layers), "counts": counts}
    for key in ("macs", "params"):
        before, after = (sum(getattr(layer, f"{key}_{side}") or 0 for layer in layers) for side in ("before", "after"))
        row[f"{key}_before"], row[f"{key}_after"] = as_count(before), as_count(after)
        row[f"{key}_left"] = as_percent(after / before, 0) if before else DASH
    return row


def _words(layers: Sequence[LayerPair], fates: Sequence[str], experts: ExpertsResult | None) -> str:
    counts = {fate: sum(_fate(layer) == fate for layer in layers) for fate in fates}
    words = (
        f"Of {len(layers)} layers that multiply, {', '.join(f'{n} {_PHRASES[fate]}' for fate, n in counts.items())}."
    )
    if experts is not None and experts.layers:
        whole = sum(layer.experts for layer in experts.layers)
        gone = whole - sum(len(layer.kept) for layer in experts.layers)
        words += f" {gone} of {whole} experts are gone."
    return words


_PHRASES = {
    "gone": "are gone",
    "added": "were added",
    "narrowed": "have fewer output channels",
    "lighter": "have their channels and less to do",
    "unchanged": "are as they were",
}
