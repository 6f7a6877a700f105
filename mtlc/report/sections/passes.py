"""Lays out the report's section on passes: what was done, with which settings, and what each says of its work."""

from __future__ import annotations

from typing import Any

from mtlc.report.parts.numbers import as_duration
from mtlc.report.parts.page import json_text
from mtlc.results.run import RunResults


def passes_section(results: RunResults) -> list[dict[str, Any]]:
    """A part for each pass, in the order of the job."""
    return [
        {
            "name": step.name,
            "config": json_text(step.config),
            "report": json_text(step.report),
            "compared": None if step.compared is None else step.compared.line(),
            "seconds": None if step.seconds is None else as_duration(step.seconds),
        }
        for step in results.passes
    ]
