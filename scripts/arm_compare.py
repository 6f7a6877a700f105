"""Compares what two machines made of the same cases: outputs by task, and the messages of what was refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtlc.errors import UserError, VerificationError


def compare(
    name: str,
    cases: Sequence[Mapping[str, Any]],
    here: Mapping[str, Any],
    there: Mapping[str, Any],
    folders: tuple[Path, Path],
    tolerance: float,
) -> dict[str, Any]:
    """The largest differences by task over all `cases` of the bundle `name`.

    Returns ``{"cases": n, "configurations": [...], "tasks": {task: {"max_abs", "max_rel", "arrays", "constant"}}}``:
    ``max_rel`` is relative to the largest absolute value of that array here, ``constant`` counts arrays that a
    comparison says little about. Raises `VerificationError` where a case fails on Arm only, configurations differ, or a
    difference is over `tolerance`, and `UserError` where one fails here.
    """
    tasks: dict[str, dict[str, Any]] = {}
    configurations = []
    with np.load(folders[0] / "outputs.npz") as expected, np.load(folders[1] / "outputs.npz") as found:
        if set(expected.files) != set(found.files):
            raise VerificationError(f"{name}: the outputs on Arm are not those of this machine")
        for number, (case, ours, theirs) in enumerate(
            zip(cases, here["bundles"][name], there["bundles"][name], strict=True)
        ):
            if "error" in ours:
                raise UserError(f"{name}: {_said(case)}: {ours['error'][1]}")
            if "error" in theirs:
                raise VerificationError(f"{name}: {_said(case)} fails on Arm only: {theirs['error'][1]}")
            if ours["configuration"] != theirs["configuration"]:
                raise VerificationError(f"{name}: {_said(case)} runs in another configuration on Arm")
            if (label := ours["configuration"]["name"] or str(case["configure"]["budget"])) not in configurations:
                configurations.append(label)
            for key in [key for key in expected.files if key.startswith(f"{name}/{number}/")]:
                task = key.split("/", 2)[2]
                most_abs, most_rel = difference(expected[key], found[key], f"{name}: task {task!r}, {_said(case)}")
                if most_rel > tolerance:
                    raise VerificationError(
                        f"{name}: task {task!r}, {_said(case)}: Arm differs by {most_rel:.1e} of the largest value, "
                        f"more than {tolerance:.1e}"
                    )
                seen = tasks.setdefault(task, {"max_abs": 0.0, "max_rel": 0.0, "arrays": 0, "constant": 0})
                seen["max_abs"], seen["max_rel"] = max(seen["max_abs"], most_abs), max(seen["max_rel"], most_rel)
                seen["arrays"] += 1
                seen["constant"] += bool(np.ptp(expected[key]) == 0)
    return {"cases": len(cases), "configurations": configurations, "tasks": tasks}


def difference(expected: np.ndarray, found: np.ndarray, where: str) -> tuple[float, float]:
    """The largest absolute difference, and that divided by the largest absolute value of `expected`.

    Raises `VerificationError` for another shape or dtype, or a number that is not finite.
    """
    if expected.shape != found.shape or expected.dtype != found.dtype:
        raise VerificationError(
            f"{where}: {found.dtype} {found.shape} on Arm, {expected.dtype} {expected.shape} on this machine"
        )
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        raise VerificationError(f"{where}: not all numbers are finite")
    most = float(np.abs(expected.astype(np.float64) - found.astype(np.float64)).max(initial=0.0))
    largest = float(np.abs(expected.astype(np.float64)).max(initial=0.0))
    return most, 0.0 if most == 0 else most / largest if largest else float("inf")


def same_messages(refused: Sequence[str], here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """The error messages, one of each refused case and command, equal on both machines.

    Raises `VerificationError` where one machine refuses and the other does not, or says something else.
    """
    messages = []
    for name in refused:
        for ours, theirs in zip(here["bundles"][name], there["bundles"][name], strict=True):
            if "error" not in ours or ours != theirs:
                raise VerificationError(f"{name}: this machine gives {ours}, Arm gives {theirs}")
            messages.append(": ".join(ours["error"]))
    for ours, theirs in zip(here["commands"], there["commands"], strict=True):
        lines = ours["stderr"].splitlines()
        if ours != theirs or ours["code"] in (0, 1, None) or len(lines) != 1:
            raise VerificationError(
                f"mtlc {' '.join(ours['arguments'])}: this machine gives {ours}, Arm gives {theirs}"
            )
        messages.append(f"exit {ours['code']}: {lines[0]}")
    return messages


def _said(case: Mapping[str, Any]) -> str:
    tasks = "all tasks" if case["tasks"] is None else " + ".join(case["tasks"])
    return tasks + (f" with {case['configure']}" if case.get("configure") else "")
