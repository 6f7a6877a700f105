"""Finds out in which order a linear layer reads the channels of a flattened map, by changing one and looking.

torch-pruning takes it that a map is flattened channel by channel, as ``x.flatten(1)`` of (N, C, H, W) does. A network
from a framework whose channels are last flattens them one beside the other::

    x.flatten(1)                        c0 c0 c0 c0  c1 c1 c1 c1  c2 …      channel c is c·k … c·k + k - 1
    x.permute(0, 2, 3, 1).flatten(1)    c0 c1 c2  c0 c1 c2  c0 …            channel c is c, c + C, c + 2·C, …

Both have as many features, so that nothing fails where the wrong ones are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtlc.compress.channels.unit import Member, Unit
from mtlc.program.modes import evaluating

Reached = dict[str, set[int]]
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def in_order_read(module: nn.Module, example: tuple[Tensor, ...], unit: Unit) -> Unit | None:
    """`unit` with the features that its channels are, in one of the two orders above for all layers that have several.

    `None` where they are in neither order, or where what other channels are reaches the same features. The network is
    run three times; one whose features are one a channel is returned as it is.
    """
    flat = [member for member in unit.members if member.side != "out" and _several(member)]
    flat = [member for member in flat if not isinstance(module.get_submodule(member.layer), _CONVS)]
    if not flat:
        return unit
    probed = sorted({0, unit.channels // 2})
    with torch.no_grad(), evaluating(module):
        reached = _features_reached(module, example, unit, flat, probed)
    for order in (_one_by_one, _beside_each_other):
        members = {member: order(member, unit.channels) for member in flat}
        if all(
            found[member.layer] <= set(ordered.indices[channel])
            for channel, found in zip(probed, reached, strict=True)
            for member, ordered in members.items()
        ):
            return replace(unit, members=tuple(members.get(member, member) for member in unit.members))
    return None


def _one_by_one(member: Member, channels: int) -> Member:
    """As torch-pruning has it."""
    return member


def _beside_each_other(member: Member, channels: int) -> Member:
    last = channels * len(member.indices[0])
    return replace(member, indices=tuple(tuple(range(channel, last, channels)) for channel in range(channels)))


def _several(member: Member) -> bool:
    """Whether each channel is several features of the layer, the same number for all."""
    return len({len(indices) for indices in member.indices}) == 1 and len(member.indices[0]) > 1


def _features_reached(
    module: nn.Module, example: tuple[Tensor, ...], unit: Unit, flat: Sequence[Member], channels: Sequence[int]
) -> list[Reached]:
    """For each of `channels`: the features of each layer of `flat` that change with it alone."""
    # What makes the channels, and norms beside it, give numbers drawn once; so no other way leads to a reader.
    sources = {m.layer: m.indices for m in unit.members if m.side != "in" and m not in flat}
    # A norm of features would mix them: what comes after it sees no change, and has the norm's order.
    norms = [m.layer for m in flat if m.side == "both"]
    readers = [m.layer for m in flat]

    def seen(changed: int | None) -> dict[str, list[Tensor]]:
        inputs: dict[str, list[Tensor]] = {name: [] for name in readers}
        with ExitStack() as stack:
            for name, indices in sources.items():
                columns = () if changed is None else indices[changed]
                stack.enter_context(_hook(module.get_submodule(name).register_forward_hook, _drawn(columns)))
            for name in norms:
                stack.enter_context(_hook(module.get_submodule(name).register_forward_hook, _drawn(())))
            for name in readers:

                def keep(
                    _: nn.Module, given: tuple[Any, ...], named: dict[str, Any], kept: list[Tensor] = inputs[name]
                ) -> None:
                    kept.append((given[0] if given else named["input"]).detach().clone())

                stack.enter_context(
                    _hook(partial(module.get_submodule(name).register_forward_pre_hook, with_kwargs=True), keep)
                )
            module(*example)
        return inputs

    before = seen(None)
    return [_changed(before, seen(channel)) for channel in channels]


def _drawn(columns: Sequence[int]) -> Callable[..., Tensor]:
    """A hook that gives numbers from a fixed seed for a layer's output, others for the channels `columns`."""

    def hook(layer: nn.Module, given: Any, output: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(output.shape, generator=generator)
        axis = output.ndim - 1 if isinstance(layer, nn.Linear | nn.LayerNorm) else 1
        for column in columns:
            drawn.select(axis, column).copy_(torch.randn(drawn.select(axis, column).shape, generator=generator))
        return drawn.to(output)

    return hook


def _changed(before: Mapping[str, Sequence[Tensor]], after: Mapping[str, Sequence[Tensor]]) -> Reached:
    found: Reached = {}
    for name, inputs in before.items():
        found[name] = set()
        for one, other in zip(inputs, after[name], strict=True):
            different = (one != other).reshape(-1, one.shape[-1]).any(0)
            found[name] |= {int(index) for index in different.nonzero()}
    return found


@contextmanager
def _hook(register: Callable[..., Any], hook: Callable[..., Any]) -> Iterator[None]:
    handle = register(hook)
    try:
        yield
    finally:
        handle.remove()
