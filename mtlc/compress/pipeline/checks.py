"""Checks what must hold after any pass: outputs, numbers and cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mtlc.compress.pass_interface import Pass, PassResult
from mtlc.errors import VerificationError
from mtlc.hw.cost.count import macs, parameters
from mtlc.program.program import Program

EXACT_TOLERANCE = 1e-5
"""How far an exact pass may move an output, relative to the largest value of that output (float32 rounding)."""


def check(
    one: Pass[Any], program: Program, result: PassResult, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> dict[str, int]:
    """Check what must hold after any pass; returns the measured cost in MACs (batch 1) and parameters.

    Every task's output keeps its shape and dtype (a pass that does not keep all tasks answers for those that it kept),
    nothing is NaN or infinite, an exact pass keeps the numbers to `EXACT_TOLERANCE`, and what the pass claims to cost
    is what is measured. Raises `VerificationError`.
    """
    for name, tensor in result.program.module.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise VerificationError(
                f"layer {name.rpartition('.')[0]!r}: its {name.rpartition('.')[2]} has NaN or infinite values"
            )
    if not after or not before.keys() >= after.keys():
        raise VerificationError(
            f"the pass was given the tasks {', '.join(before)} and left {', '.join(after) or 'none'}"
        )
    for task, old in before.items():
        if task not in after and not one.keeps_tasks:
            continue
        if task not in after:
            raise VerificationError(f"task {task!r}: its output is gone")
        new = after[task]
        if (new.shape, new.dtype) != (old.shape, old.dtype):
            raise VerificationError(
                f"task {task!r}: its output was {tuple(old.shape)} {old.dtype}, now {tuple(new.shape)} {new.dtype}"
            )
        if not new.is_floating_point():
            continue
        if not bool(new.isfinite().all()):
            raise VerificationError(f"task {task!r}: its output has NaN or infinite values")
        if one.exact:
            error, allowed = float((new - old).abs().max()), EXACT_TOLERANCE * max(float(old.abs().max()), 1e-12)
            if error > allowed:
                raise VerificationError(
                    f"task {task!r}: an exact pass moved its output by {error:.3g} (allowed {allowed:.3g})"
                )
    one.ensures(program, result)
    cost = {"macs": int(macs(result.program)), "params": int(parameters(result.program))}
    for kind, claimed in result.cost_claimed.items():
        if kind in cost and claimed != cost[kind]:
            raise VerificationError(f"the pass claims {claimed:,.0f} {kind}, measured are {cost[kind]:,}")
    return cost
