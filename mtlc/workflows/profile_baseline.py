"""Compares a profile with an earlier one: whether the network costs more than it did.

Instructions are compared where both profiles have them: they vary by less than a thousandth between runs. Where they
cannot be counted, the median times are, which say less.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from mtlc.errors import UserError
from mtlc.results.profile import Baseline, ProfileResult, Regression

MAX_GROWTH = {"instructions": 0.01, "median_ms": 0.1}
"""What is allowed if nothing is said. A time moves that much by itself."""


class _Cost(NamedTuple):
    median: float
    spread: float


def read_baseline(path: Path) -> Baseline:
    """What ``mtlc profile --json`` printed into the file `path`. Raises `UserError` if it is something else.

    A later version may have printed it: keys that a comparison does not need are passed over.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else "not JSON"
        raise UserError(
            f"--baseline {path}: cannot be read ({why}); write it with mtlc profile … --json > FILE"
        ) from None
    wrong = f"--baseline {path}: not what mtlc profile --json printed"
    if not isinstance(found, dict):
        raise UserError(f"{wrong}: no object")
    baseline = Baseline.read(found, wrong)
    if baseline.bundle not in baseline.bundles:
        raise UserError(f"{wrong}: bundles: {baseline.bundle!r} is missing")
    return baseline


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
    profile: ProfileResult, baseline: Baseline, path: Path, max_growth: float | None = None
) -> Regression:
    """The growth of a `profile` over a `baseline` from the file `path`, and whether it is more than `max_growth`.

    Raises `UserError` where the two were measured on other machines, with other backends or in another setting: they
    do not compare.
    """
    here, there = _settings(profile), _settings(baseline)
    for name, value in here.items():
        if there[name] != value:
            raise UserError(
                f"--baseline {path}: measured with {name} = {there[name]}, this one with {value}: "
                "costs do not compare; measure the baseline in the same setting"
            )
    by, why = "instructions", None
    before, after = _instructions(baseline), _instructions(profile)
    if before is None or after is None:
        by = "median_ms"
        why = profile.instructions_why or f"the baseline has no instructions: {baseline.instructions_why}"
        before, after = _time(baseline), _time(profile)
    allowed = MAX_GROWTH[by] if max_growth is None else max_growth
    growth = after.median / before.median - 1
    return Regression(
        baseline=str(path),
        by=by,
        why=why,
        before=before.median,
        after=after.median,
        spread=max(before.spread, after.spread),
        growth=growth,
        max_growth=allowed,
        grew=growth > allowed,
    )


def _instructions(profile: ProfileResult | Baseline) -> _Cost | None:
    """Of a call of the bundle that was profiled; None where they were not counted."""
    found = profile.bundles[profile.bundle].instructions
    return None if found is None else _Cost(found.median, found.spread or 0.0)


def _time(profile: ProfileResult | Baseline) -> _Cost:
    """Of a call of the bundle that was profiled, in ms."""
    found = profile.bundles[profile.bundle]
    return _Cost(found.median_ms, found.spread or 0.0)


def _settings(profile: ProfileResult | Baseline) -> dict[str, object]:
    """What must agree, by what a person calls it."""
    device, backend = profile.device, profile.backend
    return {
        "cpu": device.cpu,
        "cores": device.cores,
        "machine": device.machine,
        "system": device.system,
        "python": device.python,
        "backend": f"{backend.name} {backend.version}",
        "threads": profile.threads,
        "batch": profile.batch,
        "tasks": profile.tasks,
        "configuration": profile.configuration,
    }
