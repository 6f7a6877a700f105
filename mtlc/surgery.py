"""Recorded changes of a network's structure, as plain lists that replay bit for bit.

A step is a dict with a ``kind``. ``"channels"``: a torch-pruning history, ``[[module, is_output_channel, indices], …]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from mtlc.errors import UserError
from mtlc.factory import one_line

Step = dict[str, Any]


def dependency_graph(module: nn.Module, example: tuple[Tensor, ...]) -> tp.DependencyGraph:
    """torch-pruning's coupled channel groups of the network; the module's training mode is kept.

    Raises `UserError` for a network that torch-pruning cannot trace.
    """
    training = {name: m.training for name, m in module.named_modules()}
    frozen = [p for p in module.parameters() if not p.requires_grad]
    for parameter in frozen:  # the tracer follows grad_fn: a frozen layer would be invisible to it
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    try:
        with torch.enable_grad():  # a checkpoint may be loaded under no_grad
            return tp.DependencyGraph().build_dependency(module, example_inputs=example, verbose=False)
    except Exception as error:
        raise UserError(
            f"[model] torch-pruning cannot trace {type(module).__name__} ({one_line(error)}): "
            "its forward must be differentiable torch code; leave out the prune pass, or wrap the part that can be traced"
        ) from error
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for name, submodule in module.named_modules():
            submodule.training = training[name]


@contextmanager
def keeping_frozen(module: nn.Module) -> Iterator[None]:
    """Within the block parameters may be replaced: torch-pruning's new ones are all trainable, frozen ones are frozen again."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    yield
    for name, parameter in module.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)


def replay(module: nn.Module, example: tuple[Tensor, ...], steps: Sequence[Step]) -> None:
    """Apply recorded steps to a freshly built network, in place."""
    for step in steps:
        if step.get("kind") != "channels":
            raise UserError(f"unknown surgery {step.get('kind')!r} in the checkpoint: it was made by a newer mtlc")
        history = [(name, bool(is_out), list(indices)) for name, is_out, indices in step["history"]]
        with keeping_frozen(module):
            dependency_graph(module, example).load_pruning_history(history)
