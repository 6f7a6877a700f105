"""The report's section on passes: what was compared stands beside what was done."""

from __future__ import annotations

from mtlc.report.sections.passes import passes_section
from mtlc.results.run import RunResults

COMPARED = {
    "samples": 4, "precision": "float64", "tolerance": 1e-5, "tasks": {"depth": 2e-8}, "layers": {"a": 3e-7},
    "exact": {"depth": 1e-8},
}  # fmt: skip


def test_the_largest_difference_is_said() -> None:
    passes = [{"name": "extract", "compared": COMPARED}, {"name": "finetune"}]
    first, second = passes_section(RunResults.read({"passes": passes}, "made"))
    assert first["compared"] == (
        "max difference 3e-07 of the largest value, on 4 calibration samples in float64 "
        "(allowed: 1e-05, as rounding may)"
    )
    assert second["compared"] is None
