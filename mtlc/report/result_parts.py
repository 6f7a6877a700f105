"""Parts of a report's `results` from workloads and measurements. Imports no plotting, so a run can write its results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlc.hw.cost.workload import Workload


def results_layers(before: Workload, after: Workload) -> list[dict[str, Any]]:
    """The ``layers`` of `write_report`: every layer that multiplies, before and after, joined by module path.

    A layer that only one of the two has keeps None on the other side.
    """
    old, new = before.by_layer(), after.by_layer()
    rows = []
    for name in dict.fromkeys([*old, *new]):
        pair = (old.get(name), new.get(name))
        if not any(layer is not None and layer.macs for layer in pair):
            continue
        row: dict[str, Any] = {"name": name, "kind": next(layer.kind for layer in pair if layer is not None)}
        for side, layer in zip(("before", "after"), pair, strict=True):
            row[f"channels_{side}"] = None if layer is None else layer.channels
            row[f"macs_{side}"] = None if layer is None else layer.macs
            row[f"params_{side}"] = None if layer is None else layer.parameters
        rows.append(row)
    return rows


def results_latency(
    measured: Mapping[str, Any],
    before: str,
    after: str,
    profile_before: Mapping[str, Any] | None = None,
    profile_after: Mapping[str, Any] | None = None,
    ideal: float | None = None,
) -> dict[str, Any]:
    """The ``latency`` of `write_report` from `measure` (labels `before` and `after`, measured in this order).

    What each of its bundles has, such as ``instructions`` and ``memory``, goes along. The profiles are those of
    `profile_layers`; `ideal` is the speed-up if time fell as MACs did.
    """
    old = {layer["name"]: layer["ms"] for layer in (profile_before or {}).get("layers", ())}
    new = {layer["name"]: layer["ms"] for layer in (profile_after or {}).get("layers", ())}
    return {
        **{key: measured[key] for key in ("kind", "device", "threads", "batch", "rounds")},
        "instructions_why": measured.get("instructions_why"),
        "before": dict(measured["bundles"][before]),
        "after": dict(measured["bundles"][after]),
        "speedup": measured["speedup"][after]["median"],
        "ideal": ideal,
        "layers": [
            {"name": name, "before_ms": old.get(name), "after_ms": new.get(name)}
            for name in dict.fromkeys([*old, *new])
        ],
    }
