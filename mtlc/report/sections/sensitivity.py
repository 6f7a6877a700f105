"""Lays out the report's section on sensitivity: which task depends on which layer."""

from __future__ import annotations

import math
from typing import Any

from mtlc.report.parts.numbers import as_percent
from mtlc.results.run import RunResults, SensitivityResult


def sensitivity_section(results: RunResults) -> dict[str, Any] | None:
    """A map of each task's loss growth by unit and ratio, and the strongest tie in words; None if it was not
    measured.
    """
    found = results.sensitivity
    if found is None or not found.units or not found.growth:
        return None
    from mtlc.report.figures.charts import sensitivity_maps

    words = "How much each task's loss grows on the calibration split when one unit alone loses some of its channels."
    worst = _strongest(found)
    if worst is not None:
        growth, unit, task, ratio = worst
        words += f" The strongest tie: {task} to {unit} ({as_percent(growth)} at {as_percent(ratio)} of its channels)."
    return {"svg": sensitivity_maps(found), "words": words}


def _strongest(found: SensitivityResult) -> tuple[float, str, str, float] | None:
    """The largest growth of a loss with its unit, task and ratio; None where none is known."""
    return max(
        ((value, unit.name, task, ratio)
         for unit, rows in zip(found.units, found.growth, strict=True)
         for ratio, row in zip(found.ratios, rows, strict=True)
         for task, value in zip(found.tasks, row, strict=True) if value is not None and math.isfinite(value)),
        default=None,
    )  # fmt: skip
