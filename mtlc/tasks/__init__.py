"""Tasks: what one is, its labels, its loss, its metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlc.lazy import lazy_names

if TYPE_CHECKING:
    from mtlc.tasks.metrics import Metric
    from mtlc.tasks.task import Limit, TaskSpec, delta_m

_HOMES = {
    "Limit": ".task",
    "Metric": ".metrics",
    "TaskSpec": ".task",
    "delta_m": ".task",
}

__all__ = [
    "Limit",
    "Metric",
    "TaskSpec",
    "delta_m",
]

__getattr__ = lazy_names(__name__, _HOMES)
