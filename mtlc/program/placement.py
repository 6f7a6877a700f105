"""Says on which device torch computes, and puts networks there for as long as they run.

A program's module lives on the CPU, where it is cut, saved and exported. What runs it over data puts it on the device
that was chosen and back (`placed`); `Program.outputs` brings a batch to wherever the module is. On the CPU nothing is
moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mtlc.errors import UserError, one_line

CPU = torch.device("cpu")
_chosen: list[torch.device] = []  # the innermost block's last; threads of a search see it too


def find_device(name: str) -> torch.device:
    """The device of a name: ``auto`` (the first CUDA device, else the CPU), ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ….

    Raises `UserError` for one that torch does not know, or that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else CPU
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device = {name!r}: give auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cpu":
        return CPU
    if device.type == "meta":
        raise UserError("device = 'meta' computes nothing: give auto, cpu, cuda, cuda:1 or mps")
    try:
        backend: Any = torch.get_device_module(device.type)
        count = backend.device_count() if backend.is_available() else 0
    except (RuntimeError, AttributeError) as error:
        raise UserError(f"device = {name!r}: this torch cannot use it ({one_line(error)})") from None
    if (device.index or 0) >= count:
        there = ", ".join(f"{device.type}:{i}" for i in range(count)) or f"no {device.type} device that torch can use"
        raise UserError(f"device = {name!r} is not there: this machine has {there}; leave it out, or say cpu")
    # Without a number it is the current one, which a launcher of several processes has set.
    return torch.device(device.type, backend.current_device() if device.index is None else device.index)


@contextmanager
def computing_on(device: torch.device | str) -> Iterator[torch.device]:
    """Within the block networks are run on `device`. Raises what `find_device` raises."""
    _chosen.append(find_device(device) if isinstance(device, str) else device)
    try:
        yield _chosen[-1]
    finally:
        _chosen.pop()


def compute_device() -> torch.device:
    """The device that networks are run on: the innermost block's, else ``auto``."""
    return _chosen[-1] if _chosen else find_device("auto")


def device_of(module: nn.Module) -> torch.device:
    """Where a module is; a module without tensors is on the CPU."""
    tensor: Tensor | None = next(iter(module.parameters()), None)
    tensor = next(iter(module.buffers()), None) if tensor is None else tensor
    return CPU if tensor is None else tensor.device


@contextmanager
def placed(*modules: nn.Module) -> Iterator[torch.device]:
    """Within the block the modules are on the `compute_device`; afterwards each is where it was."""
    device = compute_device()
    before = [(module, device_of(module)) for module in modules]
    try:
        for module, here in before:
            if here != device:
                module.to(device)
        yield device
    finally:
        for module, here in before:
            if here != device:
                module.to(here)


def moved(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A batch on a device."""
    return {name: value if value.device == device else value.to(device) for name, value in batch.items()}


def device_name(device: torch.device) -> str | None:
    """What a device is called, to tell the results of two kinds apart; None for the CPU."""
    if device.type == "cpu":
        return None
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
