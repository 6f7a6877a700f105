"""Lays out the report's section on layers: output channels and multiply–accumulates of each, before and after."""

from __future__ import annotations

from typing import Any

from mtlc.report.parts.numbers import DASH, as_count, as_percent
from mtlc.results.cost import LayerPair
from mtlc.results.run import RunResults

FOLD = 24


def layers_section(results: RunResults) -> dict[str, Any] | None:
    """A row for each layer, with a bar on the scale of the widest; None without layers."""
    layers = results.layers
    if not layers:
        return None
    widest = max(max(layer.channels_before or 0, layer.channels_after or 0) for layer in layers) or 1
    narrowed = sum(is_narrowed(layer) for layer in layers)
    words = f"{narrowed} of {len(layers)} layers have fewer output channels than before."
    return {"rows": [_row(layer, widest) for layer in layers], "words": words, "fold": len(layers) > FOLD}


def is_narrowed(layer: LayerPair) -> bool:
    """Whether the layer is in both networks and has fewer channels in the compressed one."""
    old, new = layer.channels_before, layer.channels_after
    return old is not None and new is not None and new < old


def _row(layer: LayerPair, widest: int) -> dict[str, Any]:
    old, new = layer.channels_before, layer.channels_after
    return {
        "name": layer.name or "(network)",
        "channels": _channels(old, new),
        "bar_before": round(100 * (old or 0) / widest, 1),
        "bar_after": round(100 * (new or 0) / widest, 1),
        "macs_before": as_count(layer.macs_before),
        "macs_after": as_count(layer.macs_after),
        "macs_left": _share(layer.macs_before, layer.macs_after),
        "params_left": _share(layer.params_before, layer.params_after),
    }


def _channels(old: int | None, new: int | None) -> str:
    if old is None and new is None:
        return ""
    return str(new) if old == new else f"{old or DASH} → {new or DASH}"


def _share(before: int | None, after: int | None) -> str:
    return as_percent(after / before, 0) if before and after is not None else DASH
