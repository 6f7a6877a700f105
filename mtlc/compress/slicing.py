"""Running a network with channels removed, without rebuilding it.

`sliced` lends a module smaller parameters for a while: the numbers are those of the pruned network, the module and its
dependency graph stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mtlc.surgery import tensor_dimensions, without

if TYPE_CHECKING:
    from mtlc.compress.units import Member, Unit

_ATTRIBUTES = (
    "groups",
    "normalized_shape",
    "num_features",
    "num_channels",
    "in_channels",
    "out_channels",
    "in_features",
    "out_features",
)


def removed_indices(units: Mapping[str, Unit], removed: Mapping[str, Sequence[int]]) -> dict[str, dict[str, set[int]]]:
    """By layer, the output ("out") and input ("in") indices that go when the units lose their `removed` channels."""
    layers: dict[str, dict[str, set[int]]] = {}
    for name, channels in removed.items():
        for member in units[name].members:
            sides = layers.setdefault(member.layer, {"out": set(), "in": set()})
            indices = member.of(channels)
            if member.side in ("out", "both"):
                sides["out"].update(indices)
            if member.side == "in":
                sides["in"].update(indices)
    return layers


@contextmanager
def sliced(
    module: nn.Module,
    units: Mapping[str, Unit],
    removed: Mapping[str, Sequence[int]],
    weights: Mapping[str, Tensor] = MappingProxyType({}),
) -> Iterator[None]:
    """Within the block the module runs as if the units' channels were gone, with `weights` in place of its own by name."""
    undo: list[tuple[nn.Module, str, Any]] = []
    try:
        for path, weight in weights.items():
            layer, name = module.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
            undo.append((layer, name, layer._parameters[name]))
            layer._parameters[name] = nn.Parameter(weight, requires_grad=False)
        for name, sides in removed_indices(units, removed).items():
            layer = module.get_submodule(name)
            undo += [(layer, a, getattr(layer, a)) for a in _ATTRIBUTES if hasattr(layer, a)]
            _lend(layer, sides["out"], sides["in"], undo)
        for name, channels in removed.items():
            for path, attribute, share in units[name].attributes:
                owner = module.get_submodule(path)
                undo.append((owner, attribute, getattr(owner, attribute)))
                setattr(owner, attribute, getattr(owner, attribute) - share * len(set(channels)))
        yield
    finally:
        for layer, name, value in reversed(undo):
            if name in layer._parameters or name in layer._buffers:
                (layer._parameters if name in layer._parameters else layer._buffers)[name] = value
            else:
                setattr(layer, name, value)


@contextmanager
def inputs_of(network: nn.Module, layers: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """What the layers read in the block's last forward, by name."""
    seen: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[..., None]:
        def keep(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = inputs[0]

        return keep

    hooks = [network.get_submodule(name).register_forward_pre_hook(keeper(name)) for name in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def untouched(member: Member, gone: Sequence[int], whole: Tensor, left: Tensor) -> bool:
    """Whether a consumer reads (…, C) of the network without channels what it read of the whole one in the others."""
    lost = set(gone)
    kept = [index for channel, indices in enumerate(member.indices) if channel not in lost for index in indices]
    expected = whole[..., kept]
    return expected.shape == left.shape and float((expected - left).abs().max()) <= 1e-4 * float(expected.abs().max())


def _lend(layer: nn.Module, gone_out: set[int], gone_in: set[int], undo: list[tuple[nn.Module, str, Any]]) -> None:
    """Replace a layer's tensors by slices of them and mend the attributes that its forward reads."""
    for store in (layer._parameters, layer._buffers):
        for name, tensor in store.items():
            if tensor is None or tensor.ndim == 0:
                continue
            undo.append((layer, name, tensor))
            rows, columns = tensor_dimensions(layer, tensor)
            smaller = without(tensor.detach(), rows, gone_out)
            if columns is not None:
                smaller = without(smaller, columns, gone_in)
            store[name] = nn.Parameter(smaller, requires_grad=False) if store is layer._parameters else smaller  # type: ignore[assignment]
    kept = _kept_outputs(layer, gone_out)
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.groups > 1:
        layer.groups = kept  # depth-wise: units hold no other grouped convolution
    if isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = (kept,)
    if isinstance(layer, nn.GroupNorm | nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        setattr(layer, "num_channels" if isinstance(layer, nn.GroupNorm) else "num_features", kept)


def _kept_outputs(layer: nn.Module, gone: set[int]) -> int:
    weight = next(
        (t for t in (*layer._parameters.values(), *layer._buffers.values()) if t is not None and t.ndim), None
    )
    return 0 if weight is None else int(weight.shape[0])
