"""Reads a program's operators by really running its forward, for networks that look at values of their own.

A fake tensor has no values, so a forward that reads one stops there: the strides of a detection head that are turned
into numbers, or the sizes of feature maps in a tensor. Such values do not depend on the input, and shapes that follow
from them are always the same. So the network is run once on zeros, and it is followed which values come of the input:
a shape or a branch that hangs on one of those is refused, as its cost is another for each input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mtlc.errors import MtlcError, UserError, one_line
from mtlc.hw.cost.operator_recorder import OperatorRecorder, storage_of, unfused
from mtlc.hw.cost.workload import Weight, Workload
from mtlc.program.outputs import task_outputs
from mtlc.program.plain_state import copied
from mtlc.program.program import Program


def trace_real(program: Program, batch: int = 1) -> Workload:
    """The workload by a run on a copy of the module.

    Raises `UserError` where a shape or a branch depends on the data.
    """
    module = copied(program.module).eval()
    weights = {
        storage_of(tensor): Weight(name, tensor.numel(), tensor.numel() * tensor.element_size())
        for name, tensor in module.named_parameters()
    }
    own = next((tensor.shape[0] for tensor in program.example.values() if tensor.dim()), None)
    inputs = tuple(
        torch.zeros((batch, *tensor.shape[1:]) if tensor.dim() and tensor.shape[0] == own else tensor.shape,
                    dtype=tensor.dtype, device=tensor.device)
        for tensor in program.example.values()
    )  # fmt: skip
    recorder = _Following(weights, inputs)
    try:
        with recorder.watching(module), unfused(), torch.no_grad(), recorder:
            outputs = task_outputs(module(*inputs), program.tasks, program.ignored_outputs)
    except MtlcError:
        raise
    except Exception as error:
        raise UserError(f"[model] {recorder.where()} cannot be run on the example input: {one_line(error)}") from error
    return recorder.workload(outputs)


class _Following(OperatorRecorder):
    """Records operators, and follows what the input reaches."""

    def __init__(self, weights: dict[int, Weight], inputs: tuple[Tensor, ...]) -> None:
        super().__init__(weights, inputs)
        self._reached = {storage_of(tensor) for tensor in inputs}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        reads = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        reached = any(storage_of(tensor) in self._reached for tensor in reads)
        if any(storage_of(tensor) in self._reached for tensor in _values_asked(func, reads)):
            raise UserError(
                f"[model] {self.where()}: the shapes or the control flow after {func} depend on the data, "
                "so its cost cannot be counted; write it without data-dependent shapes, and leave a selection such as "
                "NMS to what comes after the network"
            )
        out = super().__torch_dispatch__(func, types, args, kwargs)
        # What is only made in the shape of its input has no value of it.
        if reached and "_like" not in func.overloadpacket.__name__ and "new_" not in func.overloadpacket.__name__:
            changed = reads if func._schema.is_mutable else []
            made = (leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
            self._reached |= {storage_of(tensor) for tensor in (*changed, *made)}
        return out


def _values_asked(func: Any, reads: list[Tensor]) -> list[Tensor]:
    """Of what an operator reads, that whose values a number in Python or the shape of the result follow from."""
    if torch.Tag.data_dependent_output in func.tags:
        return reads
    if torch.Tag.dynamic_output_shape not in func.tags:
        return []
    if func.overloadpacket.__name__ != "index":
        return reads
    # Indexing is tagged whatever it is given; only a mask selects as many elements as it says.
    return [tensor for tensor in reads[1:] if tensor.dtype in (torch.bool, torch.uint8)]
