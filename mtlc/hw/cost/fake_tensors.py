"""Reads a program's operators by running its forward on fake tensors.

The structure of the module is copied with a fake tensor in place of every parameter and buffer: nothing is computed,
and the module of the caller, its mode and its hooks stay as they were.
"""

from __future__ import annotations

import copy
import warnings
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
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mtlc.errors import MtlcError, UserError, one_line
from mtlc.hw.cost.aten_costs import cost
from mtlc.hw.cost.liveness import Step, needed, peak_bytes
from mtlc.hw.cost.workload import Operator, Weight, Workload
from mtlc.program.outputs import task_outputs
from mtlc.program.program import Program

IN_PLACE_KINDS = frozenset({"norm", "activation", "elementwise"})


def trace(program: Program, batch: int = 1) -> Workload:
    """See `mtlc.hw.cost.count.workload`."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    module, weights = _fake_copy(program.module, mode)
    inputs = _fake_inputs(program.example, batch, mode)
    recorder = _Recorder(weights, inputs)
    for path, submodule in module.named_modules():
        submodule.register_forward_pre_hook(recorder.entering(path))
        submodule.register_forward_hook(recorder.leaving)
    try:
        with _unfused(), torch.no_grad(), mode, recorder:
            outputs = task_outputs(module(*inputs), program.tasks, program.ignored_outputs)
    except MtlcError:
        raise
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise UserError(
            f"[model] {recorder.where()}: the shapes or the control flow after {error.func} depend on the data, "
            "so its cost cannot be counted; write it without data-dependent shapes"
        ) from error
    except Exception as error:
        raise UserError(f"[model] {recorder.where()} cannot be run on the example input: {one_line(error)}") from error
    return recorder.workload(outputs.values())


def _fake_copy(module: nn.Module, mode: FakeTensorMode) -> tuple[nn.Module, dict[int, Weight]]:
    """The module's structure with fake tensors, and its parameters by the address of their fake storage."""
    memo: dict[int, Any] = {}
    weights = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if id(tensor) in memo:
            continue
        fake = memo[id(tensor)] = _fake(tensor.shape, tensor.stride(), tensor.dtype, tensor.device, mode)
        if isinstance(tensor, nn.Parameter):
            weights[_storage(fake)] = Weight(name, tensor.numel(), tensor.numel() * tensor.element_size())
    try:
        # `deepcopy` takes what the memo has for an object it meets: every tensor turns into its fake one, shared
        # tensors stay shared, and no weight is ever copied.
        duplicate = copy.deepcopy(module, memo)
    except Exception as error:
        raise UserError(f"[model] {type(module).__name__} cannot be copied: {one_line(error)}") from error
    # The memo alone holds buffers that the copy dropped; their storages must outlive the trace, or addresses repeat.
    duplicate.__dict__["_mtlc_storages"] = list(memo.values())
    return duplicate.eval(), weights


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
def _unfused() -> Iterator[None]:
    """Keep torch from running whole layers as one opaque kernel (the encoder layer's fast path, oneDNN's LSTM)."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # switching oneDNN off warns about its TF32 setting, which is not touched
        with torch.backends.mkldnn.flags(enabled=False):
            torch.backends.mha.set_fastpath_enabled(False)
            try:
                yield
            finally:
                torch.backends.mha.set_fastpath_enabled(fast)


class _Recorder(TorchDispatchMode):
    """Records every operator that reaches the dispatcher, the module that ran it, and the storages that it used."""

    def __init__(self, weights: dict[int, Weight], inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[Operator] = []
        self.spans: list[tuple[int, int]] = []
        self.steps: list[Step] = []
        self.sizes: dict[Any, int] = {_storage(tensor): _bytes(tensor) for tensor in inputs}
        self.inputs = list(self.sizes)
        self.weights = weights
        self.path = [""]
        self._alive: list[Any] = list(inputs)

    def entering(self, path: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any) -> None:
            self.path.append(path)

        return hook

    def leaving(self, _module: nn.Module, _inputs: Any, _outputs: Any) -> None:
        # Not called where the module raises: the path then still names the place.
        self.path.pop()

    def where(self) -> str:
        return self.path[-1] or "the network's forward"

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # Operators of that namespace ask for a tensor's properties; they compute nothing.
        if func.namespace != "prim":
            self._record(func, args, kwargs or {}, out)
        return out

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        reads = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        writes = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not writes:
            return
        # By storage and not by tensor: views of one buffer are one buffer.
        sources = {_storage(tensor): tensor for tensor in reads}
        targets = {_storage(tensor): tensor for tensor in writes}
        if targets.keys() <= sources.keys() and (not func._schema.is_mutable or torch.Tag.inplace_view in func.tags):
            return  # a view: no work, no memory
        kind, macs = cost(func, args, kwargs, out, not sources.keys().isdisjoint(self.weights), self.where())
        # Storages are told apart by their addresses, which a freed one would hand on to the next.
        self._alive.extend(writes)
        for storage, tensor in targets.items():
            if storage not in sources:
                self.sizes[storage] = tensor.untyped_storage().nbytes()
        activations = [tensor for tensor in reads if _storage(tensor) not in self.weights]
        start = len(self.steps)
        self._add_steps(kind, args, tuple(sources), tuple(targets), writes[0])
        self.spans.append((start, len(self.steps)))
        self.operators.append(
            Operator(
                self.path[-1],
                kind,
                macs,
                tuple(self.weights[storage] for storage in sources if storage in self.weights),
                tuple(tuple(tensor.shape) for tensor in activations),
                tuple(writes[0].shape),
                sum(map(_bytes, activations)) + _bytes(writes[0]),
            )
        )

    def _add_steps(
        self, kind: str, args: tuple[Any, ...], sources: tuple[int, ...], targets: tuple[int, ...], out: Tensor
    ) -> None:
        if kind != "attention":
            self.steps.append(Step(sources, targets, kind in IN_PLACE_KINDS))
            return
        # Attention is exported as two products with the scores between them, and most runtimes store the scores.
        query, key, value = args[:3]
        scores = ("scores", len(self.steps))
        self.sizes[scores] = query.shape[:-1].numel() * key.shape[-2] * out.element_size()
        self.steps.append(Step(tuple(s for s in sources if s != _storage(value)), (scores,)))
        self.steps.append(Step((scores, _storage(value)), targets))

    def workload(self, outputs: Any) -> Workload:
        results = {_storage(tensor) for tensor in outputs}
        keep = needed(self.steps, results)
        # An operator may be two steps (attention): it counts if any of its steps leads to a result.
        operators = tuple(
            operator
            for operator, (start, stop) in zip(self.operators, self.spans, strict=True)
            if any(keep[start:stop])
        )
        steps = [step for step, kept in zip(self.steps, keep, strict=True) if kept]
        return Workload(operators, peak_bytes(steps, self.sizes, self.inputs, results))


def _storage(tensor: Tensor) -> int:
    result: int = tensor.untyped_storage()._cdata
    return result


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
