"""Lays out the report's section on passes: what was done, with which settings, and what each says of its work."""

from __future__ import annotations

from typing import Any

from mtlc.report.figures.learning_curves import learning_curve
from mtlc.report.parts.numbers import as_duration
from mtlc.report.parts.page import json_text
from mtlc.results.run import RunResults
from mtlc.results.train import trainings_of


def passes_section(results: RunResults) -> list[dict[str, Any]]:
    """A part for each pass, in the order of the job."""
    return [
        {
            "name": step.name,
            "config": json_text(step.config),
            "report": json_text(_without_curves(step.report)),
            "trainings": _trainings(step.report),
            "compared": None if step.compared is None else step.compared.line(),
            "seconds": None if step.seconds is None else as_duration(step.seconds),
        }
        for step in results.passes
    ]


def _trainings(report: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A figure for each training of a pass, what it was done with, and whether more would pay."""
    found = []
    for name, training in trainings_of(report or {}).items():
        assert training.curve is not None
        recipe = training.recipe
        found.append(
            {
                "name": name,
                "figure": learning_curve(training.curve),
                "recipe": None
                if recipe is None
                else f"{recipe.epochs:g} epochs ({recipe.epochs_from}), learning rate {recipe.lr:g} ({recipe.lr_from})",
                "more": None if training.more_epochs is None else training.more_epochs.line,
            }
        )
    return found


def _without_curves(value: Any) -> Any:
    """A report without the numbers that are drawn."""
    if isinstance(value, dict):
        return {key: _without_curves(one) for key, one in value.items() if key != "curve"}
    return [_without_curves(one) for one in value] if isinstance(value, list) else value
