"""Checks that the shapes of a network's outputs follow from those of its inputs, and grow with the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mtlc.errors import UserError
from mtlc.evaluation.splits import Batch
from mtlc.program.modes import evaluating
from mtlc.program.program import Program

_INSTEAD = (
    "return raw maps, of one shape for every input and a row for each sample, and leave what selects from them (NMS, a "
    "threshold, a mask) to what comes after the network"
)

# A threshold may let all of a sample and all of a blank one pass: what is turned round, or stronger, tells then.
_OTHERS: tuple[Callable[[Tensor], Tensor], ...] = (torch.zeros_like, torch.neg, lambda value: 10 * value)


def check_output_shapes(program: Program, sample: Batch) -> dict[str, Tensor]:
    """Run the network on one sample, on others of its size, and on two at once; the outputs for the one.

    Raises `UserError` naming the task, both shapes and what to return instead: where they depend on the data a network
    can be neither costed nor exported.
    """
    inputs = {name: sample[name][:1] for name in program.inputs}
    with evaluating(program.module), torch.no_grad():
        shown = program.outputs_on_data(inputs)
        others = [outputs for change in _OTHERS if (outputs := _on_other(program, inputs, change)) is not None]
        twice = program.outputs_on_data({name: torch.cat([value, value]) for name, value in inputs.items()})
    for task in program.tasks:
        one, two = (tuple(outputs[task.name].shape) for outputs in (shown, twice))
        what = f"task {task.name!r}: its output {task.output_key!r}"
        for other in (tuple(outputs[task.name].shape) for outputs in others):
            if one != other:
                raise UserError(
                    f"{what} is {one} for a sample and {other} for another of the same size, so its shape depends on "
                    f"the data; {_INSTEAD}"
                )
        if not one or two != (2 * one[0], *one[1:]):
            raise UserError(f"{what} is {one} for one sample and {two} for two of them; {_INSTEAD}")
    return shown


def _on_other(program: Program, inputs: Batch, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor] | None:
    """The outputs for changed inputs; None where the network does not run on them, or takes no numbers but indices."""
    if not all(value.is_floating_point() for value in inputs.values()):
        return None
    try:
        return program.outputs({name: change(value) for name, value in inputs.items()})
    except Exception:  # what a network makes of an input that nobody would give it says nothing
        return None
