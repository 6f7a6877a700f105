"""Lays out the report's section on the budget: what was asked for, and what was reached."""

from __future__ import annotations

from typing import Any

from mtlc.report.parts.numbers import as_count, as_percent
from mtlc.results.run import RunResults

_UNITS = {"macs": ("MACs", as_count), "params": ("parameters", as_count), "latency": ("ms", lambda v: f"{v:.3g}")}


def budget_section(results: RunResults) -> dict[str, Any] | None:
    """The target on a bar as long as the largest of the three figures; None without a budget."""
    budget = results.budget
    if budget is None:
        return None
    unit, show = _UNITS[budget.kind]
    if budget.kind == "latency" and results.latency is not None and results.latency.threads == 1:
        unit = "ms of CPU time"  # what a budget is judged by: see mtlc.workflows.run_budget
    largest = max(budget.original, budget.target, budget.reached)
    words = (
        f"Asked for at most {show(budget.target)} {unit} ({as_percent(budget.target / budget.original, 0)} of the "
        f"original's {show(budget.original)}); reached {show(budget.reached)} "
        f"({as_percent(budget.reached / budget.original)})."
    )
    where = 100 * budget.target / largest
    return {
        "words": words,
        "reached": round(100 * budget.reached / largest, 2),
        "target": round(where, 2),
        "target_text": f"{show(budget.target)} {unit}",
        "align": "end" if where > 75 else "start" if where < 25 else "",
    }
