"""What ``mtlc verify`` prints of two bundles or backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlc.compile.text import table


def verify_pair(result: Mapping[str, Any]) -> str:
    """Who was compared on what, and a line for each task: differences, and both metrics if there was a job."""
    names = [_side(result[key]) for key in ("first", "reference")]
    tolerance = "none" if result["tolerance"] is None else f"{result['tolerance']:.1e}"
    lines = [
        f"measured: {names[0]} against {names[1]}",
        f"{result['samples']} samples, {result['inputs']}; tolerance {tolerance}",
        "",
    ]
    measured = any("metric" in row for row in result["tasks"].values())
    header = ["task", "max abs", "max rel", "mean rel"]
    header += ["metric", "reference", "value", "difference", "unit", "limit", ""] if measured else []
    rows = []
    for task, row in result["tasks"].items():
        cells = [task, *(_number(row[key], ".1e") for key in ("max_abs", "max_rel", "mean_rel"))]
        if measured:
            verdict = {None: "", True: "kept", False: "MISSED"}[row["within"]]
            values = (
                _number(row["reference"], ".5g"),
                _number(row["value"], ".5g"),
                _number(row["difference"], "+.2g"),
            )
            cells += [row["metric"], *values, row["unit"], row["limit"] or "-", verdict]
        rows.append(cells)
    lines.append(table(header, rows))
    lines += [
        f"{task}: left out {row['near_ties']} samples with tokens whose experts are nearly tied"
        for task, row in result["tasks"].items()
        if row["near_ties"]
    ]
    lines += [f"failed: {line}" for line in result["failed"]]
    lines += [f"missed: {line}" for line in result["missed"]]
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])


def _side(side: Mapping[str, Any]) -> str:
    named = "" if side["configuration"] is None else f"{side['configuration']}, "
    return f"{side['bundle']} ({named}{side['precision']}, {side['backend']} {side['version'] or ''}".rstrip() + ")"


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)
