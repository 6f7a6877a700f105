"""The report's overview of what changed, by hand."""

from __future__ import annotations

from typing import Any

from mtlc.report.sections.changes import changes_section
from mtlc.report.sections.latency import running_costs
from mtlc.results.latency import LatencyResult
from mtlc.results.run import RunResults


def layer(name: str, kind: str, channels: tuple, macs: tuple, params: tuple) -> dict:
    pairs = {"channels": channels, "macs": macs, "params": params}
    return {"name": name, "kind": kind} | {
        f"{k}_{s}": v for k, p in pairs.items() for s, v in zip(("before", "after"), p, strict=True)
    }


LAYERS = [
    layer("a", "conv", (8, 4), (800, 400), (80, 40)),
    layer("b", "conv", (8, 8), (800, 400), (80, 40)),
    layer("c", "conv", (8, 8), (200, 200), (20, 20)),
    layer("d", "linear", (8, None), (200, None), (20, None)),
]


def run(**sections: Any) -> RunResults:
    return RunResults.read(sections, "made")


def test_layers_by_kind() -> None:
    found = changes_section(run(layers=LAYERS))
    assert found is not None
    assert found["fates"] == ["gone", "narrowed", "lighter", "unchanged"]
    conv, linear, whole = found["rows"]
    assert (conv["kind"], conv["layers"], conv["counts"]) == ("conv", 3, [0, 1, 1, 1])
    assert (conv["macs_before"], conv["macs_after"], conv["macs_left"]) == ("1.8 k", "1 k", "56 %")
    assert (linear["counts"], linear["macs_left"], linear["params_after"]) == ([1, 0, 0, 0], "0 %", "0")
    assert (whole["kind"], whole["counts"], whole["macs_left"]) == ("all", [1, 1, 1, 1], "50 %")
    assert found["words"].startswith("Of 4 layers that multiply, 1 are gone, 1 have fewer output channels, ")


def test_experts_that_went() -> None:
    kept = {"a": [0, 1, 2], "b": list(range(16))}
    layers = [{"layer": name, "experts": 16, "kept": left, "tasks": {}} for name, left in kept.items()]
    experts = {"tasks": ["depth"], "layers": layers}
    found = changes_section(run(layers=LAYERS, experts=experts))
    assert found is not None
    assert found["words"].endswith(" 13 of 32 experts are gone.")
    assert changes_section(run(experts=experts)) is None


def test_running_costs_need_both_sides() -> None:
    before = {
        "median_ms": 2.0,
        "instructions": {"median": 2e8},
        "memory": {"added_bytes": 2**21, "peak_bytes": None, "cold_ms": 40.0},
    }
    after = {
        "median_ms": 1.0,
        "instructions": None,
        "memory": {"added_bytes": 2**20, "peak_bytes": None, "cold_ms": 10.0},
    }
    rows = running_costs(LatencyResult.model_validate({"before": before, "after": after}))
    assert [(row["label"], row["before"], row["after"], row["share"]) for row in rows] == [
        ("memory that the bundle adds", "2 MiB", "1 MiB", "50.0 %"),
        ("cold start and first call, ms", "40", "10", "25.0 %"),
    ]
    assert running_costs(LatencyResult.model_validate({"before": {"median_ms": 1.0}})) == []
