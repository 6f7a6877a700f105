"""Measures what a program is worth, task by task, on splits of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlc.lazy import lazy_names

if TYPE_CHECKING:
    from mtlc.evaluation.constant_predictor import constant_metrics
    from mtlc.evaluation.criteria import Criteria
    from mtlc.evaluation.evaluate import Evaluation
    from mtlc.evaluation.splits import Splits

_HOMES = {
    "Criteria": ".criteria",
    "Evaluation": ".evaluate",
    "Splits": ".splits",
    "constant_metrics": ".constant_predictor",
}

__all__ = [
    "Criteria",
    "Evaluation",
    "Splits",
    "constant_metrics",
]

__getattr__ = lazy_names(__name__, _HOMES)
