"""Checks that a network in evaluation mode gives one answer to one question."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlc.errors import UserError
from mtlc.evaluation.splits import Batch
from mtlc.program.modes import evaluating
from mtlc.program.program import Program

_TOLERANCE = 1e-4
"""How far two answers may differ, relative to the largest value: kernels may add up in another order each time."""
_MORE = 6
_RANDOM = "let what is random ask self.training, such as F.dropout(x, 0.3, self.training)"


def check_repeatable(program: Program, batch: Batch) -> None:
    """Run the network twice on `batch` in evaluation mode. More often where it drew random numbers, as they may not
    tell each time.

    Raises `UserError` naming the task whose two answers differ: every number measured later would be a matter of luck.
    """
    with evaluating(program.module), torch.inference_mode():
        before = torch.get_rng_state()
        buffers = {name: value.clone() for name, value in program.module.named_buffers()}
        first = program.outputs_on_data(batch)
        drew = not torch.equal(before, torch.get_rng_state())
        for _ in range(1 + _MORE * drew):
            for task, again in program.outputs_on_data(batch).items():
                apart = _apart(first[task], again)
                if apart is not None:
                    raise UserError(
                        f"[model] in evaluation mode two runs on the same samples differ, task {task!r} by {apart}; "
                        f"{_remembered(program, buffers) or _RANDOM}"
                    )


def _remembered(program: Program, before: dict[str, Tensor]) -> str | None:
    """What to do about a buffer that the runs changed, if one did."""
    for name, value in program.module.named_buffers():
        if name in before and (before[name].shape != value.shape or not torch.equal(before[name], value)):
            return (
                f"the network keeps {name!r} between its calls: let it change in training mode only, or give and "
                "return it as an input and an output"
            )
    return None


def _apart(one: Tensor, other: Tensor) -> str | None:
    """How far two outputs are apart, in words; None where they are the same."""
    if one.shape != other.shape:
        return f"its shape: {tuple(one.shape)} and {tuple(other.shape)}"
    if torch.equal(one, other):
        return None
    if not one.is_floating_point():
        return f"{int((one != other).sum())} values"
    if not torch.equal(one.isfinite(), other.isfinite()):
        return "which values are finite"
    here, there = (x.double().nan_to_num(0, 0, 0) for x in (one, other))
    apart = float((here - there).abs().max())
    return f"{apart:.3g}" if apart > _TOLERANCE * float(here.abs().max()) else None
