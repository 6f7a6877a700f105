"""A device that computes on the CPU and refuses what a GPU refuses: tensors of two devices in one operator.

`pretended()` is the device within a block; outside it is not available, or torch would find an accelerator in all other
tests. It is registered once, at torch's extension point for backends in Python. A tensor there is a wrapper around one
of the CPU. Numbers are those of the CPU, bit for bit, so what runs on it is compared with
what runs on the CPU; an operator that is given a tensor of each fails as it does under CUDA. As there, tensors without
dimensions may come from the CPU, and so may indices.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

NAME = "pretended"
_MIXING = {"aten._to_copy", "aten.copy_", "aten.index", "aten.index_put_", "aten.index_put", "aten._index_put_impl_"}
operators: list[str] = []
"""The operators that ran on the device since the block began, or `operators.clear()`."""


class Pretended(Tensor):
    """A tensor on the device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Pretended:
        made: Pretended = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=torch.device(NAME, 0), requires_grad=False,
        )  # fmt: skip
        made.inner = inner
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Pretended({tuple(self.shape)})"

    def tolist(self) -> Any:
        return self.inner.tolist()  # torch has none for its subclasses

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = func.name().split(".")[0].replace("::", ".")
    operators.append(name)
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    wrapped = {id(leaf.inner): leaf for leaf in leaves if isinstance(leaf, Pretended)}
    if wrapped and name not in _MIXING:
        foreign = [leaf for leaf in leaves if not isinstance(leaf, Pretended) and leaf.ndim]
        if foreign:
            raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got {NAME}:0 and cpu")

    def unwrap(leaf: Any) -> Any:
        if isinstance(leaf, Pretended):
            return leaf.inner
        return torch.device("cpu") if isinstance(leaf, torch.device) and leaf.type == NAME else leaf

    asked = kwargs.get("device")
    to_cpu = name == "aten._to_copy" and asked is not None and torch.device(asked).type != NAME
    args_inside, kwargs_inside = pytree.tree_map(unwrap, (args, kwargs))
    if kwargs_inside.get("pin_memory"):
        kwargs_inside["pin_memory"] = False
    result = func(*args_inside, **kwargs_inside)

    def wrap(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or isinstance(leaf, Pretended) or to_cpu:
            return leaf
        return (
            wrapped[id(leaf)] if id(leaf) in wrapped else Pretended(leaf)
        )  # an operator in place returns what it was given

    if name == "aten.copy_" and not isinstance(args[0], Pretended):
        return args[0]
    return pytree.tree_map(wrap, result)


class _Backend(_DummyBackendModule):  # type: ignore[misc]
    """What ``torch.pretended`` is."""

    there = False

    def is_available(self) -> bool:
        return self.there

    def device_count(self) -> int:
        return int(self.there)


class _Hook(_DummyPrivateUse1Hook):  # type: ignore[misc]
    """What torch asks of the accelerator of a machine."""

    def is_available(self) -> bool:
        return _Backend.there


# At import, which pytest does before any test runs: with the first backward torch counts the devices once and for all.
with warnings.catch_warnings(action="ignore"):
    _setup_privateuseone_for_python_backend(NAME, _Backend(), _Hook())
_library = torch.library.Library("_", "IMPL")
_library.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")


@contextmanager
def pretended() -> Iterator[torch.device]:
    """Within the block the machine has the device.

    Tensors of a backend in Python cannot be used in inference mode: without gradients the numbers are the same.
    """
    mode = torch.inference_mode
    _Backend.there = True
    torch.inference_mode = lambda mode=True: torch.no_grad() if mode else nullcontext()  # type: ignore[assignment,misc]
    try:
        yield torch.device(NAME, 0)
    finally:
        _Backend.there = False
        torch.inference_mode = mode  # type: ignore[misc]
        operators.clear()
