"""Lets a network keep fewer activations while it trains: parts of it are run again in the backward pass.

Gradient checkpointing (Chen et al., 2016, arXiv 1604.06174) by `torch.utils.checkpoint`, for networks of any kind: the
parts are layers within layers, each at most about the root of the number of layers large, which is where the
activations kept between parts and those of the one part that is run again are least together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

Again = Callable[[], AbstractContextManager[Any]]
"""Makes the context in which a part is run again, the one that the step's own forward ran in."""


def checkpointed_parts(network: nn.Module) -> list[str]:
    """The paths of the layers that are run again: disjoint, each of two layers at least."""
    layers = sum(1 for layer in network.modules() if not any(layer.children()))
    most = max(2, math.ceil(math.sqrt(layers)))
    return [name for name, layer in _parts(network, "", most) if name]


@contextmanager
def gradient_checkpointing(network: nn.Module, again: Again = nullcontext) -> Iterator[list[str]]:
    """Within the block the parts of a network in training mode keep their inputs only; gives their paths.

    Numbers stay what they are, also of dropout and of batch norms' statistics, which the second run leaves alone.
    """
    paths = checkpointed_parts(network)
    parts = [network.get_submodule(path) for path in paths]
    for part in parts:
        part.forward = functools.partial(_run, part, part.forward, again)
    try:
        yield paths
    finally:
        for part in parts:
            del part.forward


def _run(part: nn.Module, forward: Callable[..., Any], again: Again, *args: Any, **kwargs: Any) -> Any:
    if not (part.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)

    @contextmanager
    def second() -> Iterator[None]:
        with again(), _buffers_kept(part):
            yield

    return checkpoint(
        forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), second()), **kwargs
    )  # fmt: skip


@contextmanager
def _buffers_kept(part: nn.Module) -> Iterator[None]:
    """Buffers are after the block what they were before: a batch norm counts a batch once."""
    before = [(buffer, buffer.clone()) for buffer in part.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.data.copy_(value)  # of `data`: autograd must not take it for a change of what it has kept


def _parts(layer: nn.Module, name: str, most: int) -> Iterator[tuple[str, nn.Module]]:
    leaves = sum(1 for one in layer.modules() if not any(one.children()))
    # A list of layers is not called itself.
    if name and leaves <= most and not isinstance(layer, nn.ModuleList | nn.ModuleDict):
        if leaves > 1:
            yield name, layer
        return
    for child, inner in layer.named_children():
        yield from _parts(inner, f"{name}.{child}" if name else child, most)
