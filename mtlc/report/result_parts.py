"""Makes parts of a run's results of workloads and measurements. Imports no plotting, so a run can write its results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlc.hw.cost.workload import Workload
from mtlc.results.cost import LayerPair
from mtlc.results.latency import BundleLatency, LatencyResult, LayerTimes, Load, Machine, Ratio


def results_layers(before: Workload, after: Workload) -> list[LayerPair]:
    """The ``layers`` of `RunResults`: every layer that multiplies, before and after, joined by module path."""
    old, new = before.by_layer(), after.by_layer()
    rows = []
    for name in dict.fromkeys([*old, *new]):
        was, now = old.get(name), new.get(name)
        if not any(layer is not None and layer.macs for layer in (was, now)):
            continue
        row: dict[str, Any] = {"name": name, "kind": next(layer.kind for layer in (was, now) if layer is not None)}
        for side, layer in (("before", was), ("after", now)):
            row[f"channels_{side}"] = None if layer is None else layer.channels
            row[f"macs_{side}"] = None if layer is None else layer.macs
            row[f"params_{side}"] = None if layer is None else layer.parameters
            row[f"bytes_{side}"] = None if layer is None else layer.activation_bytes + layer.parameter_bytes
        rows.append(LayerPair(**row))
    return rows


def _sureness(measured: Mapping[str, Any], after: str) -> dict[str, Any]:
    """How far the times can be trusted; nothing for measurements of earlier versions, which did not say."""
    if "load" not in measured:
        return {}
    return {
        "ratio": Ratio.model_validate(measured["speedup"][after]),
        "load": Load.model_validate(measured["load"]),
        "doubts": measured["doubts"],
    }


def results_latency(
    measured: Mapping[str, Any],
    before: str,
    after: str,
    profile_before: Mapping[str, Any] | None = None,
    profile_after: Mapping[str, Any] | None = None,
    ideal: float | None = None,
) -> LatencyResult:
    """The ``latency`` of `RunResults` from `measure` (labels `before` and `after`, measured in this order).

    What each of its bundles has, such as ``instructions`` and ``memory``, goes along. The profiles are those of
    `profile_layers`; `ideal` is the speed-up if time fell as MACs did.
    """
    old = {layer["name"]: layer["ms"] for layer in (profile_before or {}).get("layers", ())}
    new = {layer["name"]: layer["ms"] for layer in (profile_after or {}).get("layers", ())}
    return LatencyResult(
        kind=measured["kind"],
        device=Machine.model_validate(measured["device"]),
        threads=measured["threads"],
        batch=measured["batch"],
        rounds=measured["rounds"],
        instructions_why=measured.get("instructions_why"),
        before=BundleLatency.model_validate(measured["bundles"][before]),
        after=BundleLatency.model_validate(measured["bundles"][after]),
        speedup=measured["speedup"][after]["median"],
        **_sureness(measured, after),
        ideal=ideal,
        layers=[
            LayerTimes(name=name, before_ms=old.get(name), after_ms=new.get(name))
            for name in dict.fromkeys([*old, *new])
        ],
    )
