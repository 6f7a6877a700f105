"""Lays out the report's section on costs: what both networks take for one sample."""

from __future__ import annotations

from typing import Any

from mtlc.report.parts.numbers import DASH, as_bytes, as_count, as_percent
from mtlc.results.run import RunResults

_COSTS = (
    ("macs", "multiply–accumulates", as_count, "modelled"),
    ("active_macs", "multiply–accumulates as routed", as_count, "measured"),
    ("parameters", "parameters", as_count, "modelled"),
    ("peak_activation_bytes", "peak activation memory", as_bytes, "modelled"),
    ("bundle_bytes", "bundle on disk", as_bytes, "measured"),
)


def cost_section(results: RunResults) -> dict[str, Any] | None:
    """A row for each cost that either network has; None without any.

    It has a heading of its own only where no budget stands above it.
    """
    rows = []
    for key, label, show, kind in _COSTS:
        before, after = getattr(results.cost.before, key), getattr(results.cost.after, key)
        if before is None and after is None:
            continue
        share = as_percent(after / before) if before and after is not None else DASH
        rows.append({"label": label, "before": show(before), "after": show(after), "share": share, "kind": kind})
    if not rows:
        return None
    note = "; before: the original network, running the tasks that are left" if results.dropped_tasks else ""
    assumed = [one.line() for one in results.assumed]
    return {"rows": rows, "heading": results.budget is None, "note": note, "assumed": assumed}
