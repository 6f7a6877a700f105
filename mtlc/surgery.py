"""Recorded changes of a network's structure, as plain lists that replay bit for bit.

A step is a dict with a ``kind``. ``"channels"``: a torch-pruning history, ``[[module, is_output_channel, indices], …]``.
``"tasks"`` and ``"experts"``: what is left of them, see `mtlc.moe.extraction`.
``"slice"``: output and input indices that layers lose, ``[[layer, outputs, inputs], …]``, and whole numbers that modules
keep afterwards, ``[[module, attribute, value], …]``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from mtlc.errors import UserError
from mtlc.factory import one_line
from mtlc.moe import extraction
from mtlc.moe.experts import ExpertLinear

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


def tensor_dimensions(layer: nn.Module, tensor: Tensor) -> tuple[int, int | None]:
    """Which dimension of one of a layer's tensors counts its outputs, and which its inputs (None: the tensor has none).

    A convolution's or linear layer's weight is (out, in, …), a transposed convolution's (in, out, …), that of linear
    layers of experts (E, out, in) and their bias (E, out); all else is (out,).
    """
    if isinstance(layer, ExpertLinear):
        return 1, 2 if tensor.ndim > 2 else None
    if tensor.ndim < 2:
        return 0, None
    return (1, 0) if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) else (0, 1)


def input_dimension(layer: nn.Module) -> int:
    """Which dimension of a layer's weight counts its inputs."""
    _, columns = tensor_dimensions(layer, layer.weight)  # type: ignore[arg-type]
    assert columns is not None, f"the weight of {type(layer).__name__} has no inputs"
    return columns


def without(tensor: Tensor, dimension: int, gone: Collection[int]) -> Tensor:
    """The tensor without some indices of a dimension; itself if there are none."""
    if not gone:
        return tensor
    lost = set(gone)
    keep = torch.tensor([i for i in range(tensor.shape[dimension]) if i not in lost], dtype=torch.long)
    return tensor.index_select(dimension, keep.to(tensor.device))


def cut(module: nn.Module, step: Step) -> None:
    """Apply a step of kind ``"slice"``, in place.

    Raises `UserError` where it names an attribute that is not a whole number of the network's.
    """
    for name, gone_out, gone_in in step["layers"]:
        layer: Any = module.get_submodule(name)
        for key, parameter in layer._parameters.items():
            if parameter is None:
                continue
            rows, columns = tensor_dimensions(layer, parameter)
            smaller = without(parameter.detach(), rows, gone_out)
            if columns is not None:
                smaller = without(smaller, columns, gone_in)
            layer._parameters[key] = nn.Parameter(smaller, parameter.requires_grad)
        if isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = layer.weight.shape
    for name, attribute, value in step["attributes"]:
        owner = module.get_submodule(name)
        if not isinstance(value, int) or not isinstance(vars(owner).get(attribute), int):
            raise UserError(f"the surgery sets {attribute!r} of {name!r}, which is not a whole number of the network's")
        setattr(owner, attribute, value)


def replay(module: nn.Module, example: tuple[Tensor, ...], steps: Sequence[Step]) -> None:
    """Apply recorded steps to a freshly built network, in place."""
    for step in steps:
        if step.get("kind") in extraction.KINDS:
            extraction.replay(module, step)
            continue
        if step.get("kind") == "slice":
            cut(module, step)
            continue
        if step.get("kind") != "channels":
            raise UserError(f"unknown surgery {step.get('kind')!r} in the checkpoint: it was made by a newer mtlc")
        history = [(name, bool(is_out), list(indices)) for name, is_out, indices in step["history"]]
        with keeping_frozen(module):
            dependency_graph(module, example).load_pruning_history(history)
