"""Runs a network with channels removed, without rebuilding it.

`sliced` lends a module smaller parameters for a while: the numbers are those of the pruned network, the module and its
dependency graph stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mtlc.program.surgery import set_whole_number, shrink, whole_number, without_indices

if TYPE_CHECKING:
    from mtlc.compress.channels.unit import Member, Unit


def removed_indices(units: Mapping[str, Unit], removed: Mapping[str, Sequence[int]]) -> dict[str, dict[str, set[int]]]:
    """By layer, the output ("out") and input ("in") indices that go when the units lose their `removed` channels.

    Of a tensor that is no layer's weight the indices of its dimensions ("dim0", …).
    """
    layers: dict[str, dict[str, set[int]]] = {}
    for name, channels in removed.items():
        for member in units[name].members:
            indices = member.of(channels)
            if member.side.startswith("dim"):
                layers.setdefault(member.layer, {}).setdefault(member.side, set()).update(indices)
                continue
            sides = layers.setdefault(member.layer, {"out": set(), "in": set()})
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
    """Within the block the module runs as if the units' channels were gone, with `weights` for its own by name."""
    undo: list[tuple[nn.Module, str, Any]] = []
    try:
        for path, weight in weights.items():
            layer, name = module.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
            undo.append((layer, name, layer._parameters[name]))
            layer._parameters[name] = nn.Parameter(weight, requires_grad=False)
        # A tensor beside layers first: `shrink` leaves it as it is, and it may be one that a layer holds.
        for name, sides in removed_indices(units, removed).items():
            if "out" not in sides:
                undo += [without_indices(module, name, int(side[3:]), gone) for side, gone in sides.items()]
                continue
            layer = module.get_submodule(name)
            # `shrink` returns what it replaced; a layer whose weight was lent above is undone twice, the last change
            # first.
            undo += [(layer, key, value) for key, value in shrink(layer, sides["out"], sides["in"]).items()]
        for name, channels in removed.items():
            for path, attribute, share in units[name].attributes:
                # Forwards reshape by these numbers, so they fall with the channels.
                owner = module.get_submodule(path)
                present = whole_number(owner, attribute) or 0
                undo.append(set_whole_number(owner, attribute, present - share * len(set(channels))))
        yield
    finally:
        for layer, name, value in reversed(undo):
            setattr(layer, name, value)


@contextmanager
def inputs_of(network: nn.Module, layers: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """What the layers read in the block's last forward, by name; a layer that takes no tensor first is left out."""
    seen: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[..., None]:
        def keep(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
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
