"""Lays out the report's section on routing: which experts each task's tokens go to, and what they cost."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtlc.report.parts.numbers import DASH, as_count, as_percent
from mtlc.results.routing import RoutedNetwork, RoutingResult
from mtlc.results.run import RunResults

_SIDES = {"before": "the original network", "after": "the compressed network"}


def routing_section(results: RunResults) -> dict[str, Any] | None:
    """Heat maps of both networks on one scale, and each task's MACs as routed beside the count of all places."""
    found = results.routing
    if found is None:
        return None
    both = {"before": found.before, "after": found.after}
    sides = {name: side for name, side in both.items() if side is not None}
    if not sides:
        return None
    tasks = (found.after or sides["before"]).tasks
    return {
        "kind": found.kind,
        "words": _words(found, found.after or sides["before"]),
        "pictures": _pictures(sides),
        "rows": [
            {"task": task, "cells": [cell for side in both.values() for cell in _cells(side, task)]} for task in tasks
        ],
    }


def _pictures(sides: dict[str, RoutedNetwork]) -> list[dict[str, str]]:
    """A heat map of each network; one for both where their layers are alike."""
    from mtlc.report.figures.routing import routing_maps, shares

    top = max(float(np.nanmax(shares(side, task))) for side in sides.values() for task in side.tasks) or 1.0
    pictures = []
    for name, side in sides.items():
        tasks = list(side.tasks)
        alike = all(len({tuple(t.tokens_per_expert) for t in layer.tasks.values()}) == 1 for layer in side.layers)
        maps = [(tasks[0], "all tasks alike")] if alike and len(tasks) > 1 else [(task, task) for task in tasks]
        label = f"Share of the tokens that each expert gets in {_SIDES[name]}"
        pictures.append({"title": _SIDES[name], "svg": routing_maps(side, maps, top, label)})
    if len(sides) == 2:
        before, after = (side.layers for side in sides.values())
        if before[: len(after)] == after:
            return [{**pictures[0], "title": "both networks alike"}]
    return pictures


def _cells(side: RoutedNetwork | None, task: str) -> list[str]:
    if side is None or task not in side.tasks:
        return [DASH, DASH]
    return [as_count(side.tasks[task].macs), as_count(side.tasks[task].active_macs)]


def _words(found: RoutingResult, side: RoutedNetwork) -> str:
    layer = max(side.layers, key=lambda layer: max(task.busiest for task in layer.tasks.values()))
    task = max(layer.tasks, key=lambda task: layer.tasks[task].busiest)
    uniform = sorted({100 * one.top_k / one.experts for one in side.layers})
    alike = " or ".join(f"{share:.3g} %" for share in uniform)
    return (
        "Each map shows layers by experts for one task: the share of a sample's tokens that the expert gets, the mean "
        f"over {found.samples} samples of the {found.split} split. Tokens spread evenly would make every cell {alike}. "
        f"The busiest expert has {as_percent(layer.tasks[task].busiest)} of the filled places of {task} in "
        f"{layer.layer}."
    )
