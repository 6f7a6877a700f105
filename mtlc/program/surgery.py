"""Records changes of a network's structure as plain lists, and replays them bit for bit.

A step is a dict with a ``kind``. ``"channels"``: a torch-pruning history, ``[[module, is_output_channel, indices],
…]``. ``"tasks"`` and ``"experts"``: what is left of them, see `mtlc.moe.extraction`. ``"slice"``: output and input
indices that layers lose, ``[[layer, outputs, inputs], …]``, and whole numbers that modules keep afterwards, ``[[module,
attribute, value], …]``. What a layer makes of each channel that it reads, as a norm does, counts as an output; a
grouped convolution's inputs go with its outputs. ``"widths"``: the widths at which a network can run
(`mtlc.compress.slimmable.width_table`); it changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from mtlc.errors import UserError, one_line
from mtlc.moe import extraction
from mtlc.moe.experts import ExpertLinear
from mtlc.program.modes import all_trainable, evaluating

Step = dict[str, Any]

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
# By type, the attributes that count a layer's outputs and inputs.
_SIZES: tuple[tuple[Any, ...], ...] = (
    (nn.Linear, "out_features", "in_features"),
    ((*_CONVS, *_TRANSPOSED), "out_channels", "in_channels"),
    ((*_BATCH_NORMS, *_INSTANCE_NORMS), "num_features"),
    (nn.GroupNorm, "num_channels"),
    (nn.PReLU, "num_parameters"),
)


def dependency_graph(module: nn.Module, example: tuple[Tensor, ...]) -> tp.DependencyGraph:
    """torch-pruning's coupled channel groups of the network; the module's training mode is kept.

    Raises `UserError` for a network that torch-pruning cannot trace.
    """
    try:
        # The tracer follows grad_fn: it would not see a frozen layer. A checkpoint may be loaded under no_grad.
        with evaluating(module), all_trainable(module), torch.enable_grad():
            return tp.DependencyGraph().build_dependency(module, example_inputs=example, verbose=False)
    except Exception as error:
        raise UserError(
            f"[model] torch-pruning cannot trace {type(module).__name__} ({one_line(error)}): "
            "its forward must be differentiable torch code; leave out the prune pass, "
            "or wrap the part that can be traced"
        ) from error


@contextmanager
def keeping_frozen(module: nn.Module) -> Iterator[None]:
    """Within the block parameters may be replaced: torch-pruning's new ones are all trainable, frozen ones are frozen
    again.
    """
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
    return (1, 0) if isinstance(layer, _TRANSPOSED) else (0, 1)


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


def shrink(layer: nn.Module, gone_out: Collection[int], gone_in: Collection[int]) -> dict[str, Any]:
    """Take outputs and inputs from a layer, in place: its tensors and the attributes that say their sizes.

    A grouped convolution loses whole groups of outputs, and the inputs of each with it. Returns what was replaced, by
    name; `setattr` puts it back. Raises `ValueError` for a layer that cannot lose these, and leaves it as it is.
    """
    counts = _counts(layer)
    attributes: dict[str, Any] = {}
    outputs = _left(counts[0], gone_out, "output")
    inputs = _left(counts[1], gone_in, "input")
    if isinstance(layer, _CONVS) and layer.groups > 1:
        attributes["groups"] = _groups_left(layer, gone_out)
        attributes["in_channels"] = attributes["groups"] * layer.weight.shape[1]
        attributes["out_channels"] = outputs
    elif isinstance(layer, nn.LayerNorm):
        attributes["normalized_shape"] = (outputs,)
    else:
        if isinstance(layer, nn.GroupNorm) and outputs % layer.num_groups:
            raise ValueError(f"its {layer.num_groups} groups cannot share {outputs} channels")
        names = next((names for types, *names in _SIZES if isinstance(layer, types)), [])
        attributes = dict(zip(names, (outputs, inputs), strict=False))
    before = {name: getattr(layer, name) for name in attributes}
    for store in (layer._parameters, layer._buffers):
        for name, tensor in store.items():
            if tensor is None or tensor.ndim == 0:
                continue
            rows, columns = tensor_dimensions(layer, tensor)
            smaller = without(tensor.detach(), rows, gone_out)
            if columns is not None:
                smaller = without(smaller, columns, gone_in)
            before[name] = tensor
            setattr(layer, name, nn.Parameter(smaller, tensor.requires_grad) if store is layer._parameters else smaller)
    for name, value in attributes.items():
        setattr(layer, name, value)
    return before


def _counts(layer: nn.Module) -> tuple[int, int]:
    """How many outputs and inputs a layer can lose some of; 0 inputs where it loses them with its outputs."""
    if is_parametrized(layer) or "weight" not in layer._parameters:
        raise ValueError(f"{type(layer).__name__} has no weights of its own")
    if isinstance(layer, ExpertLinear):
        return layer.weight.shape[1], layer.weight.shape[2]
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        return layer.normalized_shape[0], 0
    if isinstance(layer, _CONVS) and layer.groups > 1:
        return layer.out_channels, 0
    names = next((names for types, *names in _SIZES if isinstance(layer, types)), None)
    if names is None or getattr(layer, "groups", 1) > 1:
        raise ValueError(f"{type(layer).__name__} is no layer that can lose channels")
    outputs, *inputs = (getattr(layer, name) for name in names)
    return outputs, inputs[0] if inputs else 0


def _left(count: int, gone: Collection[int], what: str) -> int:
    """How many of a layer's outputs or inputs are left."""
    for index in gone:
        if type(index) is not int or not 0 <= index < count:
            raise ValueError(f"{what} {index!r} is not one of the {count} that it can lose")
    left = count - len(set(gone))
    if gone and not left:
        raise ValueError(f"it would have no {what}s left")
    return left


def _groups_left(layer: Any, gone: Collection[int]) -> int:
    each = layer.out_channels // layer.groups
    lost = Counter(index // each for index in set(gone))
    if any(count != each for count in lost.values()):
        raise ValueError(f"the {layer.groups} groups of {each} outputs can go as wholes only")
    return int(layer.groups - len(lost))


def cut(module: nn.Module, step: Step) -> None:
    """Apply a step of kind ``"slice"``, in place.

    Raises `UserError` where it names a layer that is not the network's or cannot lose what it says, or an attribute
    that is not a whole number of the network's.
    """
    for name, gone_out, gone_in in _triples(step, "layers"):
        try:
            shrink(_submodule(module, name), _listed(gone_out), _listed(gone_in))
        except ValueError as error:
            raise UserError(f"the surgery cannot cut layer {name!r}: {error}") from error
    for name, attribute, value in _triples(step, "attributes"):
        owner = _submodule(module, name)
        if type(value) is not int or value < 1 or type(vars(owner).get(attribute)) is not int:
            raise UserError(f"the surgery sets {attribute!r} of {name!r}, which is not a whole number of the network's")
        setattr(owner, attribute, value)


def _triples(step: Step, key: str) -> list[Any]:
    entries = step.get(key)
    if not isinstance(entries, list) or not all(isinstance(e, list | tuple) and len(e) == 3 for e in entries):
        raise UserError(f"the surgery's {key!r} are no list of three entries each: the checkpoint is damaged")
    return entries


def _listed(indices: Any) -> list[Any]:
    if not isinstance(indices, list | tuple):
        raise ValueError(f"{indices!r} is no list of indices")
    return list(indices)


def _submodule(module: nn.Module, name: Any) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        raise UserError(f"the surgery cuts {name!r}, which is no layer of the network") from error


def replay(module: nn.Module, example: tuple[Tensor, ...], steps: Sequence[Step]) -> None:
    """Apply recorded steps to a freshly built network, in place."""
    for step in steps:
        if step.get("kind") in extraction.KINDS:
            extraction.replay(module, step)
            continue
        if step.get("kind") == "slice":
            cut(module, step)
            continue
        if step.get("kind") == "widths":
            continue  # says which channels belong together, and changes nothing
        if step.get("kind") != "channels":
            raise UserError(f"unknown surgery {step.get('kind')!r} in the checkpoint: it was made by a newer mtlc")
        history = [(name, bool(is_out), list(indices)) for name, is_out, indices in step["history"]]
        with keeping_frozen(module):
            dependency_graph(module, example).load_pruning_history(history)
