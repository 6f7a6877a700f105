"""What ``mtlc quantize`` prints for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlc.compile.text import count, table


def quantize(result: Mapping[str, Any]) -> str:
    """What each task pays for INT8, and which operators stayed in floating point for whose sake."""
    tasks = result["tasks"]
    heads = ("task", "metric", "float", "int8", "change", "unit", "limit", "")
    if result["configurations"]:
        rows = [
            (configuration, *_row(task, tasks[point]))
            for configuration, points in result["configurations"].items()
            for task, point in points.items()
        ]
        lines = [table(("configuration", *heads), rows)]
        verdicts = [task["validation"]["within"] for task in tasks.values()]
        kept, limited = verdicts.count(True), len(verdicts) - verdicts.count(None)
        lines += ["", f"{kept} of {limited} limits kept: of each task, with each encoder and each width of its decoder"]
    else:
        lines = [table(heads, [_row(name, task) for name, task in tasks.items()])]
    operators = result["operators"]
    if operators["float"]:
        given = [
            (row["program"], row["operator"], row["task"], _number(row["before"]), _number(row["after"]))
            for row in operators["float"]
        ]
        lines += ["", table(("program", "back in floating point", "for", "before", "after"), given)]
    lines += [f"not quantised: {row['operator']} ({row['why']})" for row in operators["excluded"]]
    lines += [
        "",
        f"{operators['int8']} operators in INT8 for {result['target']}, {result['macs_int8']:.1%} of the MACs; "
        f"{count(result['bytes_before'], 'B')} to {count(result['bytes'], 'B')}; metrics measured in {result['backend']}",
    ]
    lines += [f"missed: {line}" for line in result["missed"]]
    return "\n".join([*lines, f"bundle: {result['path']}"])


def _row(name: str, task: Mapping[str, Any]) -> tuple[str, ...]:
    found = task["validation"]
    verdict = {None: "", True: "kept", False: "MISSED"}[found["within"]]
    numbers = (f"{found['float']:.4g}", f"{found['int8']:.4g}", f"{_change(found):+.2f}%")
    return (name, task["metric"], *numbers, task["unit"], task["limit"] or "-", verdict)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _change(found: Mapping[str, float]) -> float:
    return 100 * (found["int8"] / found["float"] - 1) if found["float"] else 0.0
