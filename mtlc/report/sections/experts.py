"""Lays out the report's section on experts: which ones an extraction kept, and how each task used them."""

from __future__ import annotations

from typing import Any

from mtlc.report.parts.numbers import as_percent
from mtlc.results.routing import KeptLayer
from mtlc.results.run import RunResults


def experts_section(results: RunResults) -> dict[str, Any] | None:
    """A row for each layer and task, with a cell for each expert; None without an extraction.

    A cell is as dark as the task uses the expert.
    """
    found = results.experts
    if found is None or not found.layers:
        return None
    kept, whole = sum(len(layer.kept) for layer in found.layers), sum(layer.experts for layer in found.layers)
    words = f"{kept} of {whole} experts were kept for {', '.join(found.tasks)}"
    words += f"; {', '.join(found.dropped_tasks)} went." if found.dropped_tasks else "."
    return {
        "rows": [row for layer in found.layers for row in _rows(layer)], "words": words,
        "exact": found.exact, "approximate": found.approximate, "notes": found.notes,
    }  # fmt: skip


def _rows(layer: KeptLayer) -> list[dict[str, Any]]:
    """A row for each task; the layer's name stands in the first."""
    return [
        {
            "layer": layer.layer if place == 0 else None,
            "span": len(layer.tasks),
            "kept": f"{len(layer.kept)} of {layer.experts}",
            "task": task,
            "cells": _cells(layer, use.usage),
            "coverage": as_percent(use.coverage),
            "hit": as_percent(use.hit_dropped),
        }
        for place, (task, use) in enumerate(layer.tasks.items())
    ]


def _cells(layer: KeptLayer, usage: list[float]) -> list[dict[str, Any]]:
    most, cells = max(usage, default=0.0) or 1.0, []
    for expert, share in enumerate(usage):
        kept = expert in layer.kept
        words = f"expert {expert}: {as_percent(share)}, {'kept' if kept else 'gone'}"
        cells.append({"shade": round(share / most, 2), "kept": kept, "words": words})
    return cells
