"""The report's section on routing: which experts each task's tokens go to, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtlc.report.parts.numbers import as_count, as_percent

_SIDES = {"before": "the original network", "after": "the compressed network"}


def routing_section(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Heat maps of both networks on one scale, and each task's MACs as routed beside the count of all places."""
    sides = {side: found[side] for side in _SIDES if found and found.get(side)}
    if not found or not sides:
        return None
    from mtlc.report.figures.routing import routing_maps, shares

    top = max(float(np.nanmax(shares(side, task))) for side in sides.values() for task in side["tasks"]) or 1.0
    pictures = []
    for name, side in sides.items():
        tasks = list(side["tasks"])
        alike = all(len({tuple(t["tokens_per_expert"]) for t in la["tasks"].values()}) == 1 for la in side["layers"])
        maps = [(tasks[0], "all tasks alike")] if alike and len(tasks) > 1 else [(task, task) for task in tasks]
        label = f"Share of the tokens that each expert gets in {_SIDES[name]}"
        pictures.append({"title": _SIDES[name], "svg": routing_maps(side, maps, top, label)})
    if len(pictures) == 2 and all(sides["before"]["layers"][i] == la for i, la in enumerate(sides["after"]["layers"])):
        pictures = [{**pictures[0], "title": "both networks alike"}]
    side = sides.get("after") or sides["before"]
    return {
        "kind": found["kind"],
        "words": _words(found, side),
        "pictures": pictures,
        "rows": [
            {
                "task": task,
                "cells": [
                    as_count(sides[name]["tasks"][task][key]) if name in sides and task in sides[name]["tasks"] else "–"
                    for name in _SIDES
                    for key in ("macs", "active_macs")
                ],
            }
            for task in side["tasks"]
        ],
    }


def _words(found: Mapping[str, Any], side: Mapping[str, Any]) -> str:
    layer = max(side["layers"], key=lambda layer: max(task["busiest"] for task in layer["tasks"].values()))
    task = max(layer["tasks"], key=lambda task: layer["tasks"][task]["busiest"])
    uniform = sorted({100 * la["top_k"] / la["experts"] for la in side["layers"]})
    alike = " or ".join(f"{share:.3g} %" for share in uniform)
    return (
        f"Each map shows layers by experts for one task: the share of a sample's tokens that the expert gets, the mean over "
        f"{found['samples']} samples of the {found['split']} split. Tokens spread evenly would make every cell {alike}. "
        f"The busiest expert has {as_percent(layer['tasks'][task]['busiest'])} of the filled places of {task} in {layer['layer']}."
    )
