"""Makes units of the classes of channels that were found in a network's graph.

Classes that lie in the same tensors, at as many indices of each, are the channels of one unit.
"""

from __future__ import annotations

import fnmatch
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from mtlc.compress.channels.attention_heads import Attention
from mtlc.compress.channels.label_operators import NORMS
from mtlc.compress.channels.label_propagation import LabelPropagation
from mtlc.compress.channels.unit import Kind, LeftAlone, Member, Unit
from mtlc.moe.experts import ExpertLinear

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
Place = tuple[str, str]
"""A layer and a side of it, or a tensor and one of its dimensions."""
Indices = dict[Place, tuple[int, ...]]
"""The indices of one class by where they lie."""


class CoupledUnits:
    """The units of one propagation, and what is left alone; both with the classes that they are made of."""

    def __init__(
        self, module: nn.Module, propagation: LabelPropagation, attentions: Sequence[Attention], names: Aliases
    ) -> None:
        self._propagation, self._names = propagation, names
        self._attentions = {item.name: item for item in attentions}
        self._layers = dict(module.named_modules())
        self.units: list[Unit] = []
        self.left_alone: list[LeftAlone] = []
        self.classes: dict[str, list[int]] = {}
        """By the name of a unit, or of what is left alone, the class of each of its channels."""
        classes = propagation.classes
        self._notes = {
            what: classes.noted(what) for what in ("made", "read", "grouped", "mixed", "computed", "product")
        }
        self._reasons = classes.reasons()
        self._heads = {one: item for item in attentions for one in classes.noted(head_note(item))}
        for places, found in sorted(self._by_places().items(), key=lambda item: self._first(item[1])):
            self._add(places, found)
        self.units.sort(key=lambda unit: unit.name)

    def _by_places(self) -> dict[Any, dict[int, Indices]]:
        """Classes that somebody makes, those of equal shape together."""
        lying: dict[int, dict[Place, set[int]]] = defaultdict(lambda: defaultdict(set))
        for place, channels in self._placed():
            for index, one in enumerate(self._propagation.classes.of(channels).tolist()):
                lying[one][place].add(index)
        together: dict[Any, dict[int, Indices]] = defaultdict(dict)
        for one, places in lying.items():
            if one in self._notes["made"]:
                heads = self._heads[one].name if one in self._heads else ""
                why = self._reasons.get(one)
                key = (tuple(sorted((place, len(indices)) for place, indices in places.items())), heads, why)
                together[key][one] = {place: tuple(sorted(indices)) for place, indices in places.items()}
        return together

    def _placed(self) -> Iterator[tuple[Place, Any]]:
        for path, channels in self._propagation.norms.items():
            yield (path, "both"), channels
        for (name, dimension), channels in self._propagation.channels.items():
            for alias in self._names.of(name):
                yield self._place(alias, dimension), channels

    def _place(self, name: str, dimension: int) -> Place:
        """Which side of its layer a dimension of a weight is."""
        path, _, attribute = name.rpartition(".")
        layer = self._layers.get(path)
        if attribute in ("weight", "bias", "running_mean", "running_var"):
            if isinstance(layer, (*NORMS, nn.PReLU)):
                return path, "both"
            if isinstance(layer, nn.Linear):
                return path, "out" if dimension == 0 else "in"
            if isinstance(layer, (*_CONVS, *_TRANSPOSED)):
                return path, self._side(path, layer, attribute, dimension)
            if isinstance(layer, nn.Embedding) and dimension == 1:
                return path, "out"
        return name, f"dim{dimension}"

    def _side(self, path: str, layer: Any, attribute: str, dimension: int) -> str:
        """Which side of a convolution; of one whose groups go as wholes, both are one."""
        made = "out" if layer.groups == 1 or path in self._propagation.by_position else "both"
        rows = 1 if isinstance(layer, _TRANSPOSED) and layer.groups == 1 else 0
        if attribute == "bias" or dimension == rows:
            return made
        return "in" if dimension == 1 - rows else f"dim{dimension}"

    def _first(self, found: Mapping[int, Indices]) -> Any:
        return min(min(places.items()) for places in found.values())

    def _add(self, key: Any, found: Mapping[int, Indices]) -> None:
        some = next(iter(found.values()))
        made = sorted(path for path, side in some if side == "out") or sorted(
            path for path, side in some if side == "both"
        )
        made = made or sorted(path for path, _ in some)
        first = made[0]
        ordered = sorted(found, key=lambda one: min(i for (path, _), i in found[one].items() if path == first))
        members = tuple(
            Member(path, side, tuple(found[one][path, side] for one in ordered))  # type: ignore[arg-type]
            for path, side in sorted(some, key=lambda place: (place[1] != "out", place))
        )
        head = self._heads.get(ordered[0])
        across = self._along_attention(members) if head is None else None
        head = head or (across if across is not None and len(ordered) == across.heads else None)
        name = self._free_name([head.name] if head is not None else made)
        self.classes[name] = ordered
        why = self._why_not(ordered, found, some)
        if why is not None:
            layers = any(not side.startswith("dim") for _, side in some)
            if layers and (len(ordered) > 1 or any(side == "out" for _, side in some)):
                self.left_alone.append(LeftAlone(name, len(ordered), why))
            return
        kind: Kind = "heads" if head is not None else "channels"
        if head is None and ordered[0] in self._notes["grouped"]:
            kind = "groups"
        noted = {what for what in ("mixed", "computed") if any(one in self._notes[what] for one in ordered)}
        attributes = head.attributes if head is not None else () if across is None else across.width_attributes
        self.units.append(
            Unit(
                name, len(ordered), members, not noted and self._zeros_stand_for(members),
                self._multiple(ordered), kind,
                width=head.width if head is not None else _width(members),
                attributes=attributes, multiplied=any(one in self._notes["product"] for one in ordered),
                residual=head is None and self._is_residual(members),
                by_layers=all(self._by_layer(member) for member in members),
            )
        )  # fmt: skip

    def _along_attention(self, members: Sequence[Member]) -> Attention | None:
        """The attention module whose heads, or the same channel of all whose heads, these members are."""
        for item in self._attentions.values():
            for member in members:
                rows = self._layers.get(member.layer)
                if member.side != "out" or member.layer not in item.rows or not isinstance(rows, nn.Linear):
                    continue
                channels = len(member.indices)
                per = rows.out_features // channels if rows.out_features % channels == 0 else 0
                if item.why is None and per and channels in (item.heads, item.width) and len(member.indices[0]) == per:
                    return item
        return None

    def _zeros_stand_for(self, members: Sequence[Member]) -> bool:
        """Whether layers alone read the channels, each by a weight of its own: zeros in it are then their absence."""
        readers = [member.layer for member in members if member.side == "in"]
        return bool(readers) and all(len(self._names.all_of(f"{layer}.weight")) == 1 for layer in readers)

    def _is_residual(self, members: Sequence[Member]) -> bool:
        """Whether several layers add to the channels and attention reads them: the width of a transformer."""
        if sum(member.side == "out" for member in members) < 2:
            return False
        read = {member.layer for member in members if member.side == "in"}
        if any(read & {*item.rows, *item.fixed} for item in self._attentions.values()):
            return True
        made = {
            name.rpartition(".")[0]
            for (name, dimension), channels in self._propagation.channels.items()
            if dimension == 0 and set(self._propagation.classes.of(channels).tolist()) & self._notes["product"]
        }
        return bool(read & made)

    def _by_layer(self, member: Member) -> bool:
        layer = self._layers.get(member.layer)
        if isinstance(layer, (*_CONVS, *_TRANSPOSED)) and layer.groups > 1:
            return member.side == "both" and not isinstance(layer, _TRANSPOSED)
        return not member.side.startswith("dim") and not isinstance(layer, nn.Embedding | nn.RMSNorm)

    def _free_name(self, made: Sequence[str]) -> str:
        for name in made:
            if name not in self.classes:
                return name
        return next(f"{made[0]}#{n}" for n in range(2, 1000) if f"{made[0]}#{n}" not in self.classes)

    def _why_not(self, ordered: Sequence[int], found: Mapping[int, Indices], some: Indices) -> str | None:
        reason = next((self._reasons[one] for one in ordered if one in self._reasons), None)
        if reason is not None:
            return reason
        if any(isinstance(self._layers.get(path.rpartition(".")[0]), ExpertLinear) for path, _ in some):
            return "its channels are read or made by experts"
        if ordered[0] not in self._notes["read"]:
            return "nothing consumes its channels"
        if len(ordered) == 1:
            return "all its channels are tied together"
        if self._multiple(ordered) >= len(ordered):
            return "a group norm allows no fewer channels"
        for path, _ in some:
            layer = self._layers.get(path)
            if isinstance(layer, _TRANSPOSED) and layer.groups not in (1, layer.out_channels):
                return f"{path} is a transposed convolution of {layer.groups} groups"
        return None

    def _multiple(self, ordered: Sequence[int]) -> int:
        """What kept channels must be a multiple of, for group norms to keep equal groups."""
        multiple = 1
        for channels, groups in self._propagation.group_norms:
            present = self._propagation.classes.of(channels).tolist()
            width = present.count(ordered[0])
            if width:
                # `groups` must divide kept · width: kept is a multiple of groups / gcd(groups, width).
                multiple = math.lcm(multiple, groups // math.gcd(groups, width))
        return multiple


def _width(members: Sequence[Member]) -> int:
    """How many channels of a layer one of the unit's is, in all layers that make them."""
    made = [len(m.indices[0]) for m in members if m.side in ("out", "both")]
    return math.gcd(*made) if made else 1


def head_note(item: Attention) -> str:
    return f"heads of {item.name}"


class Aliases:
    """All names of tensors that have several: tied weights."""

    def __init__(self, module: nn.Module) -> None:
        self._of: dict[str, list[str]] = {}
        first: dict[int, str] = {}
        for name, tensor in (
            *module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)
        ):  # fmt: skip
            self._of.setdefault(first.setdefault(id(tensor), name), []).append(name)

    def all_of(self, name: str) -> list[str]:
        """All names of the tensor that has this one."""
        return next((names for names in self._of.values() if name in names), [name])

    def of(self, name: str) -> list[str]:
        """All names of the tensor whose first name this is."""
        return self._of.get(name, [name])


def ignored(unit: Unit, patterns: Iterable[str]) -> bool:
    """Whether the job leaves a unit alone, by its name or a layer that makes its channels."""
    makers = ("out", "both") if unit.kind == "groups" else ("out",)
    layers = [unit.name, *(m.layer for m in unit.members if m.side in makers)]
    return any(fnmatch.filter(layers, pattern) for pattern in patterns)


def expert_units(module: nn.Module) -> Iterator[Unit]:
    """The hidden channels of every module with linear layers of experts `fc1` and `fc2`, as units."""
    for name, layer in module.named_modules():
        fc1, fc2 = (dict(layer.named_children()).get(child) for child in ("fc1", "fc2"))
        if isinstance(fc1, ExpertLinear) and isinstance(fc2, ExpertLinear):
            hidden = fc1.weight.shape[1]
            slots = tuple((channel,) for channel in range(hidden))
            members = (Member(f"{name}.fc1", "out", slots), Member(f"{name}.fc2", "in", slots))
            yield Unit(name, hidden, members, maskable=True, kind="experts")
