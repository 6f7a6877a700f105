"""Lists the operators of workloads that were counted without a rule, for whoever shows what a network costs."""

from __future__ import annotations

from mtlc.hw.cost.workload import Workload
from mtlc.results.cost import AssumedOperator


def assumed_operators(*workloads: Workload) -> list[AssumedOperator]:
    """Each operator once, with the layers of all the workloads that run it, in order of first use."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for work in workloads:
        for key, layers in work.assumed().items():
            found.setdefault(key, {}).update(dict.fromkeys(layers))
    return [
        AssumedOperator(operator=operator, kind=kind, layers=list(layers)) for (operator, kind), layers in found.items()
    ]
