"""Records changes of a network's structure as plain lists, and replays them bit for bit.

A step is a dict with a ``kind``. ``"channels"``: a torch-pruning history, ``[[module, is_output_channel, indices],
…]``. ``"tasks"`` and ``"experts"``: what is left of them, see `mtlc.moe.extraction`. ``"slice"``: output and input
indices that layers lose, ``[[layer, outputs, inputs], …]``, and whole numbers that modules keep afterwards, ``[[module,
attribute, value], …]``, where an attribute may be an entry of a list, ``"sizes.1"``. With ``"tensors"``, ``[[name,
dimension, indices], …]``, tensors that are no layer's weights lose indices too. What a layer makes of each channel that
it reads, as a norm does, counts as an output; a grouped convolution's inputs go with its outputs, unless it loses some
of its own: then its groups stay, and all lose the same. ``"widths"``: the widths at which a network can run
(`mtlc.compress.slimmable.width_table`); it changes nothing. ``"unpack"``: layers that were made plain ones
(`mtlc.program.unpacking`).
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
from mtlc.program import unpacking
from mtlc.program.modes import all_trainable, evaluating
from mtlc.program.outputs import tensors_in

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
    (nn.Embedding, "embedding_dim"),
)
OWN_TENSORS = ("weight", "bias", "running_mean", "running_var")
"""The tensors that a layer of these types has; others are a subclass's."""


def dependency_graph(module: nn.Module, example: tuple[Tensor, ...]) -> tp.DependencyGraph:
    """torch-pruning's coupled channel groups of the network; the module's training mode is kept.

    Raises `UserError` for a network that torch-pruning cannot trace.
    """
    try:
        # The tracer follows grad_fn: it would not see a frozen layer. A checkpoint may be loaded under no_grad.
        with evaluating(module), all_trainable(module), torch.enable_grad():
            return tp.DependencyGraph().build_dependency(
                module, example_inputs=example, verbose=False, output_transform=tensors_in
            )
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
    if isinstance(layer, nn.Embedding):
        return 1, 0
    if isinstance(layer, _TRANSPOSED) and layer.groups > 1:
        return 0, None  # depth-wise, or nothing of it is cut: each of its inputs is one output
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


def shrink(
    layer: nn.Module, gone_out: Collection[int], gone_in: Collection[int], *, others: bool = False
) -> dict[str, Any]:
    """Take outputs and inputs from a layer, in place: its tensors and the attributes that say their sizes.

    A grouped convolution loses whole groups of outputs, and the inputs of each with it; or, where it loses inputs of
    its weight, the same number from every group. With `others` the tensors that a subclass has besides lose the same.
    Returns what was replaced, by name; `setattr` puts it back. Raises `ValueError` for a layer that cannot lose these,
    and leaves it as it is.
    """
    counts = _counts(layer)
    attributes: dict[str, Any] = {}
    outputs = _left(counts[0], gone_out, "output")
    inputs = _left(counts[1], gone_in, "input")
    if isinstance(layer, _CONVS) and layer.groups > 1 and (gone_in or not _whole_groups(layer, gone_out)):
        _equal_groups(layer, gone_out)
        attributes["in_channels"] = layer.groups * inputs
        attributes["out_channels"] = outputs
    elif isinstance(layer, (*_CONVS, *_TRANSPOSED)) and layer.groups > 1:
        attributes["groups"] = _groups_left(layer, gone_out)
        each = layer.in_channels // layer.groups
        attributes["in_channels"] = attributes["groups"] * each
        attributes["out_channels"] = outputs
    elif isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        attributes["normalized_shape"] = (outputs,)
    else:
        if isinstance(layer, nn.GroupNorm) and outputs % layer.num_groups:
            raise ValueError(f"its {layer.num_groups} groups cannot share {outputs} channels")
        names = next((names for types, *names in _SIZES if isinstance(layer, types)), [])
        attributes = dict(zip(names, (outputs, inputs), strict=False))
    before = {name: getattr(layer, name) for name in attributes}
    for store in (layer._parameters, layer._buffers):
        for name, tensor in store.items():
            if (
                tensor is None
                or tensor.ndim == 0
                or not (others or name in OWN_TENSORS or isinstance(layer, ExpertLinear))
            ):
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


def without_indices(
    module: nn.Module, name: str, dimension: int, gone: Collection[int]
) -> tuple[nn.Module, str, Tensor | nn.Parameter]:
    """Take indices of a dimension from a parameter or buffer, in place.

    Returns its module, its name there and what it was. Raises `ValueError` for one that cannot lose them.
    """
    path, _, attribute = name.rpartition(".")
    owner = _submodule(module, path)
    tensor = owner._parameters.get(attribute, owner._buffers.get(attribute))
    if tensor is None or type(dimension) is not int or not 0 <= dimension < tensor.ndim:
        raise ValueError(f"{name!r} has no dimension {dimension!r}")
    _left(tensor.shape[dimension], gone, "index")
    smaller = without(tensor.detach(), dimension, gone)
    kept = nn.Parameter(smaller, tensor.requires_grad) if attribute in owner._parameters else smaller
    setattr(owner, attribute, kept)
    return owner, attribute, tensor


def _counts(layer: nn.Module) -> tuple[int, int]:
    """How many outputs and inputs a layer can lose some of; 0 inputs where it loses them with its outputs."""
    if is_parametrized(layer) or "weight" not in layer._parameters:
        raise ValueError(f"{type(layer).__name__} has no weights of its own")
    if isinstance(layer, ExpertLinear):
        return layer.weight.shape[1], layer.weight.shape[2]
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm) and len(layer.normalized_shape) == 1:
        return layer.normalized_shape[0], 0
    if isinstance(layer, _CONVS) and layer.groups > 1:
        return layer.out_channels, layer.weight.shape[1]
    if isinstance(layer, _TRANSPOSED) and layer.groups == layer.in_channels == layer.out_channels:
        return layer.out_channels, 0
    if isinstance(layer, nn.Embedding):
        return layer.embedding_dim, 0
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


def _whole_groups(layer: Any, gone: Collection[int]) -> bool:
    each = layer.out_channels // layer.groups
    return all(count == each for count in Counter(index // each for index in set(gone)).values())


def _equal_groups(layer: Any, gone: Collection[int]) -> None:
    lost = Counter(index // (layer.out_channels // layer.groups) for index in set(gone))
    if gone and len({lost[group] for group in range(layer.groups)}) > 1:
        raise ValueError(f"its {layer.groups} groups of outputs must all lose as many, or go as wholes")


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
    tied = _tied_names(module)
    # Steps without a list of tensors are of a time when a layer's other tensors were cut with it.
    for name, gone_out, gone_in in _triples(step, "layers"):
        try:
            layer = _submodule(module, name)
            shrink(layer, _listed(gone_out), _listed(gone_in), others="tensors" not in step)
        except ValueError as error:
            raise UserError(f"the surgery cannot cut layer {name!r}: {error}") from error
    for name, dimension, gone in _triples(step, "tensors") if "tensors" in step else ():
        try:
            without_indices(module, str(name), dimension, _listed(gone))
        except ValueError as error:
            raise UserError(f"the surgery cannot cut {name!r}: {error}") from error
    _tie(module, tied)
    for name, attribute, value in _triples(step, "attributes"):
        owner = _submodule(module, name)
        if type(value) is not int or value < 1 or whole_number(owner, attribute) is None:
            raise UserError(f"the surgery sets {attribute!r} of {name!r}, which is not a whole number of the network's")
        set_whole_number(owner, attribute, value)


def whole_number(owner: nn.Module, attribute: Any) -> int | None:
    """A whole number that a module keeps, by its name, or in a list or tuple: ``"sizes.1"``; None for anything else."""
    name, _, place = str(attribute).partition(".")
    value = vars(owner).get(name)
    if place:
        if not isinstance(value, list | tuple) or not place.isdigit() or int(place) >= len(value):
            return None
        value = value[int(place)]
    return value if type(value) is int else None


def set_whole_number(owner: nn.Module, attribute: str, value: int) -> tuple[nn.Module, str, Any]:
    """Set what `whole_number` gives; returns the module, the attribute's name and what it was before."""
    name, _, place = attribute.partition(".")
    before = vars(owner)[name]
    if place:
        changed = [*before[: int(place)], value, *before[int(place) + 1 :]]
        setattr(owner, name, type(before)(changed) if type(before) in (list, tuple) else changed)
    else:
        setattr(owner, name, value)
    return owner, name, before


def _tied_names(module: nn.Module) -> list[list[str]]:
    """The names of parameters that are one tensor, such as a weight that two layers share."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [several for several in names.values() if len(several) > 1]


def _tie(module: nn.Module, tied: Sequence[Sequence[str]]) -> None:
    """Make parameters one tensor again: each was cut for itself, from the same numbers."""
    for first, *others in tied:
        kept = module.get_parameter(first)
        for name in others:
            path, _, attribute = name.rpartition(".")
            if module.get_parameter(name).shape != kept.shape:
                raise UserError(f"the surgery cuts {first!r} and {name!r}, which are one tensor, not alike")
            setattr(module.get_submodule(path), attribute, kept)


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
        if step.get("kind") == unpacking.KIND:
            unpacking.replay(module, step)
            continue
        if step.get("kind") == "widths":
            continue  # says which channels belong together, and changes nothing
        if step.get("kind") != "channels":
            raise UserError(f"unknown surgery {step.get('kind')!r} in the checkpoint: it was made by a newer mtlc")
        history = [(name, bool(is_out), list(indices)) for name, is_out, indices in step["history"]]
        with keeping_frozen(module):
            dependency_graph(module, example).load_pruning_history(history)
