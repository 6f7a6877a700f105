"""Pruning units: the coupled channel groups of a network, found by torch-pruning's dependency graph.

A unit is everything that must lose the same channels together: the layers that produce them (residual partners
included), their norms, and the input channels of the layers that consume them (pagcp.md's *unit*). The outputs of task
heads are no units.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch_pruning as tp
from torch import Tensor, nn

from mtlc.errors import UserError
from mtlc.surgery import Step, keeping_frozen

Side = Literal["out", "in", "both"]
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ROOTS = (*_CONVS, nn.ConvTranspose2d, nn.Linear)
_PRODUCTS = ("Bmm", "ScaledDotProduct")  # the tracer takes every operator that it does not know as element-wise
_CHANNELWISE_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Member:
    """A layer's part in a unit: which side loses channels, and for every unit channel the layer's own indices."""

    layer: str
    side: Side
    indices: tuple[tuple[int, ...], ...]

    def of(self, channels: Iterable[int]) -> list[int]:
        """The layer's indices of the unit's `channels`."""
        return [index for channel in channels for index in self.indices[channel]]


@dataclass(frozen=True)
class Unit:
    """A coupled channel group. `maskable` units can be tried by zeroing weights: the numbers are those of the pruned network."""

    name: str
    channels: int
    members: tuple[Member, ...]
    maskable: bool
    multiple: int = 1  # kept channels are a multiple of this: a group norm needs equal groups

    @property
    def producers(self) -> tuple[Member, ...]:
        return tuple(m for m in self.members if m.side == "out")

    @property
    def consumers(self) -> tuple[Member, ...]:
        return tuple(m for m in self.members if m.side == "in")


@dataclass(frozen=True)
class LeftAlone:
    """A group that is not pruned, and why."""

    name: str
    channels: int
    why: str


class ChannelGroups:
    """The units of one network, and the surgery on it. The dependency graph belongs to `module` and its present shape."""

    def __init__(
        self, module: nn.Module, example: tuple[Tensor, ...], graph: tp.DependencyGraph, ignore: Sequence[str] = ()
    ) -> None:
        self.module, self.graph = module, graph
        names = {m: name for name, m in module.named_modules()}
        self.units: list[Unit] = []
        self.left_alone: list[LeftAlone] = []
        self._roots: dict[str, tuple[nn.Module, Any]] = {}
        unmatched = [p for p in ignore if not fnmatch.filter(names.values(), p)]
        if unmatched:
            raise UserError(f"ignore = {unmatched[0]!r} matches no layer of the network")
        for group in graph.get_all_groups(root_module_types=list(_ROOTS)):
            self._add(group, names, ignore)
        self.units.sort(key=lambda unit: unit.name)

    def _add(self, group: Any, names: Mapping[nn.Module, str], ignore: Sequence[str]) -> None:
        root = group[0].dep.target.module
        prune, channels = group[0].dep.handler, len(group[0].idxs)
        name, why = names[root], None
        members: dict[tuple[str, Side], list[list[int]]] = {}
        maskable, multiple = True, 1
        for item in group:
            module, kind = item.dep.target.module, type(item.dep.target.module).__name__
            if kind == "_OutputOp":
                why = "an output of the network"
            if kind == "_ElementWiseOp" and any(product in str(module) for product in _PRODUCTS):
                why = why or "its channels are multiplied with each other, as in attention"
            if module not in names:
                maskable = maskable and kind not in ("_ReshapeOp", "_UnsqueezeOp")
                continue
            side = _side(module, item.dep.handler)
            if side is None:
                why = why or f"{names[module]} ({kind}) has no side that can lose channels alone"
                continue
            if side == "both" or isinstance(module, nn.LayerNorm | nn.GroupNorm):
                maskable = maskable and isinstance(module, (*_CHANNELWISE_NORMS, *_CONVS))
            if isinstance(module, nn.GroupNorm):
                multiple = math.lcm(multiple, module.num_groups)
            if any(fnmatch.fnmatch(names[module], pattern) for pattern in ignore) and side == "out":
                why = why or "ignored by the job"
            slots = members.setdefault((names[module], side), [[] for _ in range(channels)])
            for index, origin in zip(item.idxs, _origins(item), strict=True):
                slots[origin].append(int(index))
        if not any(side == "in" for _, side in members):
            why = why or "nothing consumes its channels"
        if why is not None:
            self.left_alone.append(LeftAlone(name, channels, why))
            return
        built = tuple(Member(layer, side, tuple(tuple(s) for s in slots)) for (layer, side), slots in members.items())
        first = min(m.layer for m in built if m.side == "out")
        name = name if first in self._roots else first  # a layer may produce channels of two units
        self._roots[name] = (root, prune)
        self.units.append(Unit(name, channels, built, maskable, multiple))

    def prune(self, removed: Mapping[str, Sequence[int]]) -> Step | None:
        """Remove channels of units, by name, from the module, in place; the surgery step that replays it."""
        changed = False
        with keeping_frozen(self.module):
            for name, channels in sorted(removed.items()):
                if channels:
                    root, prune = self._roots[name]
                    group = self.graph.get_pruning_group(root, prune, sorted(channels))
                    group.prune(record_history=True)
                    changed = True
        if not changed:
            return None
        history = [
            [name, bool(is_out), [int(i) for i in indices]] for name, is_out, indices in self.graph.pruning_history()
        ]
        return {"kind": "channels", "history": history}


def _origins(item: Any) -> Sequence[int]:
    """For each index of a group's item, the channel of the group's root that it follows."""
    return [int(i) for i in item.root_idxs]


def _side(module: nn.Module, handler: Any) -> Side | None:
    """Which side of the layer a pruning function cuts; "both" where input and output channels are the same."""
    if isinstance(module, nn.Linear) or (isinstance(module, (*_CONVS, nn.ConvTranspose2d)) and module.groups == 1):
        return "in" if "in_channels" in handler.__name__ else "out"
    if isinstance(module, _CONVS):
        return "both" if module.groups == module.in_channels == module.out_channels else None
    if isinstance(module, (*_CHANNELWISE_NORMS, nn.LayerNorm, nn.GroupNorm, nn.PReLU, nn.InstanceNorm2d)):
        return "both"
    return None
