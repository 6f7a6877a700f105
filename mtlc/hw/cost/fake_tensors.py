"""Reads a program's operators by running its forward on fake tensors.

The structure of the module is copied with a fake tensor in place of every parameter and buffer: nothing is computed,
and the module of the caller, its mode and its hooks stay as they were.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.overrides import TorchFunctionMode

from mtlc.errors import MtlcError, UserError, one_line
from mtlc.hw.cost.operator_recorder import OperatorRecorder, storage_of, unfused
from mtlc.hw.cost.real_tensors import trace_real
from mtlc.hw.cost.workload import Weight, Workload
from mtlc.program.outputs import task_outputs
from mtlc.program.program import Program


def trace(program: Program, batch: int = 1) -> Workload:
    """See `mtlc.hw.cost.count.workload`."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    module, weights = _fake_copy(program.module, mode)
    inputs = _fake_inputs(program.example, batch, mode)
    recorder = OperatorRecorder(weights, inputs)
    try:
        with recorder.watching(module), _quiet(), unfused(), torch.no_grad(), mode, recorder:
            outputs = task_outputs(module(*inputs), program.tasks, program.ignored_outputs)
    except MtlcError:
        raise
    except Exception as error:
        if _asks_for_values(error):
            return trace_real(program, batch)
        raise UserError(f"[model] {recorder.where()} cannot be run on the example input: {one_line(error)}") from error
    return recorder.workload(outputs)


def _asks_for_values(error: Exception) -> bool:
    """Whether fake tensors failed only because they have no values: a number was read, or a kernel knows no shapes."""
    kinds = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
    return isinstance(error, kinds) or "no fake impl" in str(error)


def _fake_copy(module: nn.Module, mode: FakeTensorMode) -> tuple[nn.Module, dict[int, Weight]]:
    """The module's structure with fake tensors, and its parameters by the address of their fake storage."""
    memo: dict[int, Any] = {}
    weights = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if id(tensor) in memo:
            continue
        fake = memo[id(tensor)] = _fake(tensor.shape, tensor.stride(), tensor.dtype, tensor.device, mode)
        if isinstance(tensor, nn.Parameter):
            weights[storage_of(fake)] = Weight(name, tensor.numel(), tensor.numel() * tensor.element_size())
    try:
        # `deepcopy` takes what the memo has for an object it meets: every tensor turns into its fake one, shared
        # tensors stay shared, and no weight is ever copied.
        with _Faking(mode):
            duplicate = copy.deepcopy(module, memo)
    except Exception as error:
        raise UserError(f"[model] {type(module).__name__} cannot be copied: {one_line(error)}") from error
    # The memo alone holds buffers that the copy dropped; their storages must outlive the trace, or addresses repeat.
    duplicate.__dict__["_mtlc_storages"] = list(memo.values())
    return duplicate.eval(), weights


class _Faking(TorchFunctionMode):
    """Copies a tensor that is neither a parameter nor a buffer, such as a plain attribute, as a fake one too."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self._mode = mode

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__deepcopy__ or args[0].layout != torch.strided:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = _fake(tensor.shape, tensor.stride(), tensor.dtype, tensor.device, self._mode)
        return memo[id(tensor)]


def _fake(
    shape: Sequence[int], stride: Sequence[int] | None, dtype: torch.dtype, device: torch.device, mode: FakeTensorMode
) -> Tensor:
    meta = (
        torch.empty(tuple(shape), dtype=dtype, device="meta")
        if stride is None
        else torch.empty_strided(tuple(shape), tuple(stride), dtype=dtype, device="meta")
    )
    return FakeTensor(mode, meta, device)


def _fake_inputs(example: Mapping[str, Tensor], batch: int, mode: FakeTensorMode) -> tuple[Tensor, ...]:
    """Fake inputs of `batch` samples: the first dimension changes where it is the example's batch."""
    own = next((tensor.shape[0] for tensor in example.values() if tensor.dim()), None)
    return tuple(
        _fake(
            (batch, *tensor.shape[1:]) if tensor.dim() and tensor.shape[0] == own else tensor.shape,
            None, tensor.dtype, tensor.device, mode,
        )
        for tensor in example.values()
    )  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's own account of a forward that fails: it is raised as well."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before
