"""What ``mtlc trace`` prints for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlc.compile.text import count, table


def trace(result: Mapping[str, Any]) -> str:
    """Tokens per expert by layer and task, then each task's MACs as routed beside those with every place filled."""
    lines = [f"{result['source']} ({result['kind']})", ""]
    rows = []
    for layer in result["layers"]:
        for task, found in layer["tasks"].items():
            tokens = " ".join(f"{tokens:.4g}" for tokens in found["tokens_per_expert"])
            routed = f"{count(found['active_macs'])} of {count(layer['full_macs'])}"
            rows.append((layer["layer"], task, f"{100 * found['busiest']:.1f} %", routed, tokens))
    lines.append(table(("layer", "task", "busiest", "MACs of the experts", "mean tokens of each expert"), rows))
    uniform = sorted({layer["experts"] for layer in result["layers"]})
    lines.append(
        "busiest: its share of the filled places; if all were alike "
        + ", ".join(f"{100 / experts:.1f} % of {experts}" for experts in uniform)
    )
    costs = [(task, count(cost["active_macs"]), count(cost["macs"])) for task, cost in result["tasks"].items()]
    if len(costs) > 1:
        costs.append(("together", count(result["active_macs"]), count(result["macs"])))
    lines += ["", table(("task", "MACs as routed (measured)", "all places filled (modelled)"), costs)]
    if result["path"] is not None:
        lines += ["", f"trace: {result['path']}"]
    return "\n".join(lines)
