"""Says how far what INT8 costs a task is a matter of which validation samples there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mtlc.evaluation.bootstrap import drawn_pairs, interval
from mtlc.export.quantization.bounds import SEED, Bound, Reached


def int8_chances(
    plain: Mapping[str, Reached], int8: Mapping[str, Reached], bounds: Mapping[str, Bound]
) -> dict[str, dict[str, Any]]:
    """By task, ``change_interval``: the 95 % interval of the metric in INT8 less that in floating point, in its unit.

    And ``kept_in``, for a task with a limit: the share of draws that keep it, against what the limit is measured from.
    Empty for a metric that does not say what samples add to it; ``change_interval`` is None of one sample.
    """
    found: dict[str, dict[str, Any]] = {}
    for task, reached in int8.items():
        before, after = plain[task].statistics, reached.statistics
        pairs = None if before is None or after is None else drawn_pairs({"": before}, {"": after}, [""], SEED)
        if before is None or pairs is None:
            found[task] = {}
            continue
        one, other = pairs[""]
        change = interval(other - one, len(before.rows))
        found[task] = {"change_interval": None if change is None else asdict(change)}
        share = bounds[task].kept_in(reached) if task in bounds else None
        found[task] |= {} if share is None else {"kept_in": share}
    return found
