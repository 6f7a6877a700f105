"""Puts a network into evaluation mode, or makes all its parameters trainable, for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block, so that a forward changes no statistics.

    Afterwards every submodule has its own mode again, not all of them that of `module`: a frozen batch norm inside a
    network that trains stays in evaluation mode.
    """
    modes = {submodule: submodule.training for submodule in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for submodule, mode in modes.items():
            submodule.training = mode


@contextmanager
def all_trainable(module: nn.Module) -> Iterator[None]:
    """Gradients for every parameter within the block: what follows gradients would not see a frozen layer."""
    frozen = [p for p in module.parameters() if not p.requires_grad and p.is_floating_point()]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
