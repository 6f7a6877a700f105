"""The report's section on experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlc.report.parts.numbers import as_percent


def experts_section(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """An extraction: a row for each layer and task, with a cell for each expert as dark as the task uses it."""
    if not found or not found.get("layers"):
        return None
    rows = []
    for layer in found["layers"]:
        for place, (task, one) in enumerate(layer["tasks"].items()):
            most = max(one["usage"], default=0.0) or 1.0
            rows.append(
                {
                    "layer": layer["layer"] if place == 0 else None,
                    "span": len(layer["tasks"]),
                    "kept": f"{len(layer['kept'])} of {layer['experts']}",
                    "task": task,
                    "cells": [
                        {"shade": round(share / most, 2), "kept": expert in layer["kept"],
                         "words": f"expert {expert}: {as_percent(share)}, {'kept' if expert in layer['kept'] else 'gone'}"}
                        for expert, share in enumerate(one["usage"])
                    ],
                    "coverage": as_percent(one["coverage"]),
                    "hit": as_percent(one["hit_dropped"]),
                }
            )  # fmt: skip
    kept, all_of_them = (
        sum(count) for count in zip(*((len(e["kept"]), e["experts"]) for e in found["layers"]), strict=True)
    )
    words = f"{kept} of {all_of_them} experts were kept for {', '.join(found['tasks'])}"
    words += f"; {', '.join(found['dropped_tasks'])} went." if found.get("dropped_tasks") else "."
    return {"rows": rows, "words": words, **{key: found.get(key) or [] for key in ("exact", "approximate", "notes")}}
