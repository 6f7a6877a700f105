"""Compares a profile with an earlier one: whether the network costs more than it did.

Instructions are compared where both profiles have them: they vary by less than a thousandth between runs. Where they
cannot be counted, the median times are, which say less.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtlc.errors import UserError

MAX_GROWTH = {"instructions": 0.01, "median_ms": 0.1}
"""What is allowed if nothing is said. A time moves that much by itself."""
_MACHINE = ("cpu", "cores", "machine", "system", "python")


def read_baseline(path: Path) -> dict[str, Any]:
    """What ``mtlc profile --json`` printed into the file `path`. Raises `UserError` if it is something else."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not JSON"
        raise UserError(
            f"--baseline {path}: cannot be read ({why}); write it with mtlc profile … --json > FILE"
        ) from None
    try:
        _cost(found, "median_ms")
        _settings(found)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"--baseline {path}: not what mtlc profile --json printed") from None
    return dict(found)


def parse_growth(text: str) -> float:
    """A share from ``"1%"`` or ``"0.01"``. Raises `UserError` for anything else, and below 0."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"--max-growth {text}: write a share such as 1% or 0.01")
    return value


def compare_with_baseline(
    profile: Mapping[str, Any], baseline: Mapping[str, Any], path: Path, max_growth: float | None = None
) -> dict[str, Any]:
    """The growth of a `profile` over a `baseline` from the file `path`, and whether it is more than `max_growth`.

    ``by`` is ``"instructions"`` or ``"median_ms"``, ``why`` says why it is not the first. Raises `UserError` where the
    two were measured on other machines, with other backends or in another setting: they do not compare.
    """
    here, there = _settings(profile), _settings(baseline)
    for name, value in here.items():
        if there[name] != value:
            raise UserError(
                f"--baseline {path}: measured with {name} = {there[name]}, this one with {value}: "
                "costs do not compare; measure the baseline in the same setting"
            )
    sides = [_cost(found, "instructions") for found in (baseline, profile)]
    by, why = "instructions", None
    if None in sides:
        by, why = (
            "median_ms",
            profile["instructions_why"] or f"the baseline has no instructions: {baseline['instructions_why']}",
        )
        sides = [_cost(found, "median_ms") for found in (baseline, profile)]
    before, after = (float(side["median"]) for side in sides if side is not None)
    allowed = MAX_GROWTH[by] if max_growth is None else max_growth
    growth = after / before - 1
    return {
        "baseline": str(path),
        "by": by,
        "why": why,
        "before": before,
        "after": after,
        "spread": max(float(side["spread"]) for side in sides if side is not None),
        "growth": growth,
        "max_growth": allowed,
        "grew": growth > allowed,
    }


def _cost(profile: Mapping[str, Any], by: str) -> dict[str, float] | None:
    """Median and spread of the bundle that was profiled; None if it was not counted."""
    found = profile["bundles"][profile["bundle"]]
    if by == "median_ms":
        return {"median": float(found["median_ms"]), "spread": float(found["spread"])}
    return None if found["instructions"] is None else dict(found["instructions"])


def _settings(profile: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree, by what a person calls it."""
    device, backend = profile["device"], profile["backend"]
    return {
        **{key: device[key] for key in _MACHINE},
        "backend": f"{backend['name']} {backend['version']}",
        **{key: profile[key] for key in ("threads", "batch", "tasks", "configuration")},
    }
