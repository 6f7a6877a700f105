"""Finds pruning units on torch-pruning's graph, for a network that `torch.export` refuses.

The graph follows gradients from the outputs back: what is not a layer is taken to work element by element. A grouped
convolution ties those that feed it to those that it makes: they are one unit, whose channels are whole groups. Heads
and hidden channels of experts are found by structure.
"""

from __future__ import annotations

import fnmatch
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlc.compress.channels.attention_heads import Attention, attentions
from mtlc.compress.channels.coupled_units import expert_units, ignored
from mtlc.compress.channels.flattened_order import in_order_read
from mtlc.compress.channels.grouped_convolutions import Coupled, Side, common_slots, is_grouped, tied, whole_groups
from mtlc.compress.channels.slicing import sliced
from mtlc.compress.channels.unit import LeftAlone, Member, Unit
from mtlc.errors import UserError, one_line
from mtlc.moe.experts import ExpertLinear
from mtlc.program.modes import evaluating
from mtlc.program.outputs import tensors_in
from mtlc.program.surgery import dependency_graph

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_WEIGHTED = (*_CONVS, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_PRODUCTS = ("Bmm", "ScaledDotProduct")  # the tracer takes every operator that it does not know as element-wise
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


_LONGEST = 60.0  # seconds that the search for groups may take: flattened and concatenated outputs make it explode


class TracedGroups:
    """The units of one network, and what is left alone.

    The network is run once on the example with one channel of each unit gone (and once more for each if that fails):
    what it does not run without is left alone.
    """

    def __init__(self, module: nn.Module, example: tuple[Tensor, ...], ignore: Sequence[str] = ()) -> None:
        self.module = module
        graph = dependency_graph(module, example)
        _end_in_time(graph, _LONGEST)
        names = {m: name for name, m in module.named_modules()}
        self.units: list[Unit] = []
        self.left_alone: list[LeftAlone] = []
        kept_inside = [*self._heads(), *expert_units(module)]
        # Layers whose rows belong to heads or experts, those of attention that is refused included: cutting them
        # channel by channel would leave heads of different widths.
        self._inside = {m.layer for unit in kept_inside for m in unit.producers}
        self._inside |= {layer for item in attentions(module) for layer in item.rows}
        self._expert_weights = {
            id(p) for m in module.modules() if isinstance(m, ExpertLinear) for p in m.parameters(recurse=False)
        }
        # Plain groups first: a layer may make channels of two units, and the first one takes its name.
        groups = graph.get_all_groups(root_module_types=list(_WEIGHTED))
        coupled = [one for group in groups if not (one := self._read(group, names, ignore)).inside]
        for one in coupled:
            if not one.grouped:
                self._add(one, example)
        joined = [unit for pieces in tied(coupled) if (unit := self._joined(pieces)) is not None]
        kept_inside = [unit for unit in kept_inside if not self._ignored(unit, ignore)]
        self.units = self._running([*self.units, *joined, *kept_inside], example)

    def _heads(self) -> Iterator[Unit]:
        for found in attentions(self.module):
            why = found.why
            if why is None and found.keys != found.heads:  # a head cannot take its key along, which others share
                why = "its queries have more heads than its keys and values"
            if why is None:
                yield _head_unit(found)
            else:
                self.left_alone.append(LeftAlone(found.name, found.heads, why))

    def _ignored(self, unit: Unit, ignore: Sequence[str]) -> bool:
        if not ignored(unit, ignore):
            return False
        self.left_alone.append(LeftAlone(unit.name, unit.channels, "ignored by the job"))
        return True

    def _running(self, units: Sequence[Unit], example: tuple[Tensor, ...]) -> list[Unit]:
        """Those of `units` that the network still runs without a channel of, to outputs of the same shapes.

        The others are added to what is left alone.
        """
        if not units:
            return []
        by_name = {unit.name: unit for unit in units}

        def shapes(removed: Sequence[Unit]) -> list[Any]:
            with sliced(self.module, by_name, {unit.name: range(unit.multiple) for unit in removed}):
                return [tensor.shape for tensor in tensors_in(self.module(*example))]

        def why_not(removed: Sequence[Unit]) -> str | None:
            try:
                return None if shapes(removed) == expected else "its channels reach an output"
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                return f"the network does not run without its channels ({one_line(error)})"

        with torch.no_grad(), evaluating(self.module):
            expected = shapes([])
            # All at once: one forward for a network that has nothing to refuse. Only otherwise is each asked alone.
            if why_not(units) is None:
                return list(units)
            reasons = {unit.name: why_not([unit]) for unit in units}
        self.left_alone += [LeftAlone(u.name, u.channels, why) for u in units if (why := reasons[u.name]) is not None]
        return [unit for unit in units if reasons[unit.name] is None]

    def _read(self, group: Any, names: Mapping[nn.Module, str], ignore: Sequence[str]) -> Coupled:
        """A group of torch-pruning as we need it: who makes and reads its channels, and why it may not be cut.

        Channels are coupled where something adds or multiplies them one by one::

            conv1 --> bn1 --+
                            (+) --> conv3       conv1 out, bn1 both, conv2 out and conv3 in lose the same channels
            conv2 ----------+
        """
        root, channels = group[0].dep.target.module, len(group[0].idxs)
        one = Coupled(names[root], channels)
        reshaped = False
        # To the tracer an expert layer's weight is no layer's but a node of its own, so it is told by identity.
        if any(id(item.dep.target.module) in self._expert_weights for item in group):
            one.why = "its channels are read or made by experts"
        for item in group:
            module = item.dep.target.module
            _refuse_by_operation(one, module)
            if module in names:
                self._read_layer(one, item, names[module], ignore)
            else:
                reshaped = reshaped or type(module).__name__ in ("_ReshapeOp", "_UnsqueezeOp")
        made = {layer for layer, side in one.slots if side == "out"}
        if made & self._inside:
            one.inside = made <= self._inside and not one.grouped  # a unit of heads says it better
            one.why = one.why or "its channels are those of attention heads"
        if reshaped:  # linear layers reshape tokens (N, T, C) to rows and back; of anything else it is not known
            layers = {layer for layer, _ in (*one.slots, *one.grouped)}
            one.maskable = one.maskable and all(isinstance(self.module.get_submodule(n), nn.Linear) for n in layers)
        return one

    def _read_layer(self, one: Coupled, item: Any, name: str, ignore: Sequence[str]) -> None:
        """Add to `one` which indices of a layer follow each of its channels, or why it may not be cut."""
        module = item.dep.target.module
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return  # one slope for all channels: nothing to cut
        side = _side(module, item.dep.handler)
        if side is None:
            one.why = one.why or f"{name} ({type(module).__name__}) has no side that can lose channels alone"
            return
        # Batch norms and depth-wise convolutions treat each channel alone: one that nobody reads may as well be there.
        # A norm over channels has another mean without it, so zeroing its readers is not the same as removing it.
        if side == "both" or isinstance(module, nn.LayerNorm | nn.GroupNorm):
            one.maskable = one.maskable and isinstance(module, (*_BATCH_NORMS, *_CONVS))
        if any(fnmatch.fnmatch(name, pattern) for pattern in ignore) and side == "out":
            one.why = one.why or "ignored by the job"
        # A list of indices for each channel: behind a flattened map, one channel is many columns of a linear layer.
        slots = (one.grouped if is_grouped(module) else one.slots).setdefault(
            (name, side), [[] for _ in range(one.channels)]
        )
        origins = list(item.root_idxs)  # for each index, the channel of the group's root that it follows
        if any(origin is None for origin in origins):
            one.why = one.why or f"torch-pruning does not say which channels of {name} follow it"
            return
        for index, origin in zip(item.idxs, origins, strict=True):
            slots[int(origin)].append(int(index))

    def _add(self, one: Coupled, example: tuple[Tensor, ...]) -> None:
        """The unit of a coupled group that no grouped convolution touches."""
        if not any(side == "in" for _, side in one.slots):
            one.why = one.why or "nothing consumes its channels"
        if one.why is not None:
            self.left_alone.append(LeftAlone(one.name, one.channels, one.why))
            return
        members = _members(one.slots)
        first = min(m.layer for m in members if m.side == "out")
        taken = {unit.name for unit in self.units}
        name = one.name if first in taken else first  # a layer may produce channels of two units
        unit = Unit(name, one.channels, members, one.maskable, self._multiple(members))
        read = in_order_read(self.module, example, unit)
        if read is None:
            why = "its channels are flattened in an order that is not known"
            self.left_alone.append(LeftAlone(name, one.channels, why))
            return
        self.units.append(read)

    def _joined(self, pieces: Sequence[Coupled]) -> Unit | None:
        """The unit of coupled groups that grouped convolutions tie together; its channels are whole groups of all."""
        layers = sorted({layer for piece in pieces for layer, _ in piece.grouped})
        shares = whole_groups(pieces, {layer: self.module.get_submodule(layer) for layer in layers})
        members = _members(common_slots(pieces, shares))
        why = self._not_joined(pieces, layers, len(shares), members)
        if why is not None:
            self.left_alone += [LeftAlone(piece.name, piece.channels, piece.why or why) for piece in pieces]
            return None
        taken = {unit.name for unit in self.units}
        names = [*sorted(m.layer for m in members if m.side == "out"), *layers]
        return Unit(
            next((layer for layer in names if layer not in taken), pieces[0].name),
            len(shares),
            members,
            all(piece.maskable for piece in pieces),
            self._multiple(members),
            kind="groups",
            # A share may hold 4 channels of one layer and 6 of another: it falls in steps of what divides both.
            width=math.gcd(*(len(m.indices[0]) for m in members)),
        )

    def _not_joined(
        self, pieces: Sequence[Coupled], layers: Sequence[str], count: int, members: Sequence[Member]
    ) -> str | None:
        named = f"the grouped convolution{'s' if len(layers) > 1 else ''} {', '.join(layers)}"
        refused = next((piece for piece in pieces if piece.why is not None), None)
        if refused is not None:
            return f"tied to {refused.name} by {named}: {refused.why}"
        if count == 0:
            return f"some channels of {named} cannot go"
        if count == 1:
            return f"the groups of {named} have no part in common that could go alone"
        if any(len({len(indices) for indices in m.indices}) > 1 for m in members):
            return f"the groups of {named} have unequal shares of the layers' channels"
        if not any(m.side == "in" for m in members):
            return "nothing consumes its channels"
        if self._multiple(members) >= count:
            return f"a group norm beside {named} allows no fewer channels"
        return None

    def _multiple(self, members: Iterable[Member]) -> int:
        """What kept channels must be a multiple of, for the group norms among the layers to keep equal groups."""
        multiple = 1
        for member in members:
            layer = self.module.get_submodule(member.layer)
            # `num_groups` must divide kept · width: kept is a multiple of num_groups / gcd(num_groups, width).
            if isinstance(layer, nn.GroupNorm):
                width = max(len(indices) for indices in member.indices)
                multiple = math.lcm(multiple, layer.num_groups // math.gcd(layer.num_groups, width))
        return multiple


def _end_in_time(graph: Any, seconds: float) -> None:
    """Let the graph's search for groups raise `UserError` after some time: it has no limit of its own."""
    end = time.monotonic() + seconds

    def limited(asked: Callable[..., bool]) -> Callable[..., bool]:
        def ask(*arguments: Any) -> bool:
            if time.monotonic() > end:
                raise UserError(
                    f"[model] torch-pruning's search for channels that belong together did not end within {seconds:g} "
                    "seconds, and torch.export refuses the network: make its forward free of branches on the data"
                )
            return asked(*arguments)

        return ask

    for node in graph.module2node.values():
        for dependency in node.dependencies:
            dependency.is_triggered_by = limited(dependency.is_triggered_by)


def _refuse_by_operation(one: Coupled, module: nn.Module) -> None:
    """Say why `one` may not be cut if this operation forbids it, whatever its layers are."""
    kind = type(module).__name__
    if kind == "_OutputOp":
        one.why = "an output of the network"
    if kind == "_ElementWiseOp" and any(product in str(module) for product in _PRODUCTS):
        one.why = one.why or "its channels are multiplied with each other, as in attention"


def _members(slots: Mapping[tuple[str, Side], Sequence[Sequence[int]]]) -> tuple[Member, ...]:
    return tuple(Member(layer, side, tuple(tuple(s) for s in part)) for (layer, side), part in slots.items())


def _head_unit(found: Attention) -> Unit:
    members = [Member(layer, "out", rows) for layer, rows in found.rows.items()]
    members += [Member(layer, "in", columns) for layer, columns in found.columns.items()]
    return Unit(
        found.name, found.heads, tuple(members), True, kind="heads", width=found.width, attributes=found.attributes
    )


def _side(module: nn.Module, handler: Any) -> Side | None:
    """Which side of the layer a pruning function cuts; "both" where input and output channels are the same."""
    if isinstance(module, _WEIGHTED) and (getattr(module, "groups", 1) == 1 or is_grouped(module)):
        return "in" if "in_channels" in handler.__name__ else "out"
    if isinstance(module, _CONVS):
        return "both" if module.groups == module.in_channels == module.out_channels else None
    if isinstance(module, nn.LayerNorm):
        return "both" if len(module.normalized_shape) == 1 else None
    return "both" if isinstance(module, (*_BATCH_NORMS, *_INSTANCE_NORMS, nn.GroupNorm, nn.PReLU)) else None
