"""Says which channels a width keeps: every channel group is assigned to a stage of the encoder or to a decoder."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from mtlc.compress.channels.grouped_convolutions import Side
from mtlc.compress.channels.unit import Kind, LeftAlone, Member, Unit
from mtlc.compress.slimmable.configuration import Configuration, checked_widths, kept_channels, step_of
from mtlc.compress.slimmable.layer_places import Place
from mtlc.errors import UserError

MOST_STAGES = 4  # of an encoder whose resolution never changes
SHARED = "stream"
"""The stage of channels that layers of several stages make together, such as a transformer's residual stream."""


@dataclass(frozen=True)
class WidthTable:
    """The channel groups of a supernet: `stage_of` and `decoder_of` say whose width each unit follows.

    A narrower width keeps the leading channels of every unit, in steps of `round_to` channels of a layer.
    """

    widths: tuple[float, ...]
    round_to: int
    stages: tuple[str, ...]
    tasks: tuple[str, ...]
    units: tuple[Unit, ...]
    group_of: Mapping[str, str]
    left_alone: tuple[LeftAlone, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for group in self.groups:
            self._refuse_too_narrow(group)

    @property
    def groups(self) -> tuple[str, ...]:
        """Stages, then tasks."""
        return (*self.stages, *self.tasks)

    @property
    def largest(self) -> Configuration:
        return Configuration((1.0,) * len(self.stages), (1.0,) * len(self.tasks))

    @property
    def smallest(self) -> Configuration:
        return self.uniform(min(self.widths))

    def uniform(self, width: float) -> Configuration:
        """One width for every group; one that lacks it takes the next wider that it has, or its widest."""

        def of(group: str) -> float:
            options = self.options(group)
            return next((option for option in options if option >= width), options[-1])

        return Configuration(tuple(map(of, self.stages)), tuple(map(of, self.tasks)))

    def without(self, gone: Mapping[str, str]) -> WidthTable:
        """The table without some units, which keep their width; `gone` says why, by name."""
        units = tuple(unit for unit in self.units if unit.name not in gone)
        if not units:
            raise UserError(
                f"no channel group of the network can be made slim: {next(iter(gone))}: {next(iter(gone.values()))}"
            )
        alone = [LeftAlone(unit.name, unit.channels, gone[unit.name]) for unit in self.units if unit.name in gone]
        group_of = {name: group for name, group in self.group_of.items() if name not in gone}
        stages = tuple(stage for stage in self.stages if stage in group_of.values())
        return replace(self, stages=stages, units=units, group_of=group_of, left_alone=(*self.left_alone, *alone))

    def of(self, group: str) -> list[Unit]:
        """The units that follow the group's width."""
        return [unit for unit in self.units if self.group_of[unit.name] == group]

    def options(self, group: str) -> tuple[float, ...]:
        """The widths at which the group differs, rising; where two keep the same channels, the larger one."""
        # Rounding may make two widths one. The dictionary keeps the last, and `widths` rises.
        kept = {tuple(self.kept(unit, width) for unit in self.of(group)): width for width in self.widths}
        return tuple(sorted(kept.values()))

    def has(self, configuration: Configuration) -> bool:
        """Whether every group has the width that a configuration gives it."""
        widths = (*configuration.encoder, *configuration.decoders)
        return len(widths) == len(self.groups) and all(
            width in self.options(group) for group, width in zip(self.groups, widths, strict=True)
        )

    def kept(self, unit: Unit, width: float) -> int:
        """How many channels a unit keeps at a width."""
        return kept_channels(unit.channels, width, step_of(unit.width, unit.multiple, self.round_to))

    def kept_counts(self, configuration: Configuration) -> dict[str, int]:
        """The channels that every unit keeps in a configuration, by its name."""
        width_of = self.width_of(configuration)
        return {unit.name: self.kept(unit, width_of[self.group_of[unit.name]]) for unit in self.units}

    def removed(self, configuration: Configuration) -> dict[str, range]:
        """The trailing channels that units lose in a configuration."""
        kept = self.kept_counts(configuration)
        return {u.name: range(kept[u.name], u.channels) for u in self.units if kept[u.name] < u.channels}

    def width_of(self, configuration: Configuration) -> dict[str, float]:
        """The widths of a configuration by group. Raises `UserError` if it is not one of this network's."""
        if len(configuration.encoder) != len(self.stages) or len(configuration.decoders) != len(self.tasks):
            raise UserError(
                f"a configuration of this network has {len(self.stages)} encoder widths and {len(self.tasks)} decoder "
                f"widths, not {len(configuration.encoder)} and {len(configuration.decoders)}"
            )
        widths = dict(zip(self.groups, (*configuration.encoder, *configuration.decoders), strict=True))
        for group, width in widths.items():
            if width not in self.widths:
                known = ", ".join(f"{w:g}" for w in self.widths)
                raise UserError(f"{group}: width {width:g} was not trained; the widths are {known}")
        return widths

    def to_step(self) -> dict[str, Any]:
        """The table as a surgery step of kind ``"widths"``, which changes nothing by itself."""
        return {
            "kind": "widths",
            "widths": list(self.widths),
            "round_to": self.round_to,
            "stages": list(self.stages),
            "tasks": list(self.tasks),
            "units": [
                {
                    "name": u.name, "group": self.group_of[u.name], "kind": u.kind, "channels": u.channels,
                    "width": u.width, "multiple": u.multiple, "attributes": [list(a) for a in u.attributes],
                    "members": [[m.layer, m.side, _packed(m.indices)] for m in u.members],
                }
                for u in self.units
            ],
        }  # fmt: skip

    @classmethod
    def from_step(cls, step: Mapping[str, Any]) -> WidthTable:
        """Read a step that `to_step` made. Raises `UserError` for one that it cannot have made."""
        try:
            units = tuple(
                Unit(
                    u["name"], u["channels"],
                    tuple(Member(layer, side, _unpacked(slots)) for layer, side, slots in u["members"]),
                    True, u["multiple"], u["kind"], u["width"], tuple((p, a, n) for p, a, n in u["attributes"]),
                )
                for u in step["units"]
            )  # fmt: skip
            group_of = {u["name"]: u["group"] for u in step["units"]}
            stages, tasks = (_listed(step[key]) for key in ("stages", "tasks"))
            if any(group not in (*stages, *tasks) for group in group_of.values()):
                raise ValueError("a channel group follows no stage and no task")
            if len(group_of) < len(units) or not all(_sound(unit) for unit in units):
                raise ValueError("a channel group is not whole")
            return cls(
                checked_widths(_listed(step["widths"])), _positive(step["round_to"]), stages, tasks, units, group_of
            )
        except (LookupError, TypeError, ValueError, AttributeError, UserError) as error:
            raise UserError(f"the checkpoint's width table is damaged: {type(error).__name__}: {error}") from None

    def _refuse_too_narrow(self, group: str) -> None:
        units = self.of(group)
        if units and all(self.kept(unit, self.widths[0]) == unit.channels for unit in units):
            unit = max(units, key=lambda u: u.channels * u.width)
            what = f"{unit.channels} heads" if unit.kind == "heads" else f"{unit.channels * unit.width} channels"
            raise UserError(
                f"{group} is too narrow for width {self.widths[0]:g}: its widest channel group, {unit.name}, "
                f"has {what}, "
                f"all of them kept in steps of {self.round_to}; lower round_to, or list its layers in ignore"
            )


def build_table(
    units: Sequence[Unit],
    places: Mapping[str, Place],
    tasks: Sequence[str],
    widths: tuple[float, ...],
    round_to: int,
    stages: Mapping[str, Sequence[str]] | None = None,
    left_alone: Sequence[LeftAlone] = (),
) -> WidthTable:
    """Assign units to decoders (their makers serve one task of several) and to stages of the encoder.

    A stage is what runs at one resolution, with the gates and experts inside; an encoder that keeps its resolution is
    divided into `MOST_STAGES` runs of equally many units. `stages` names them instead, by patterns of layers. Raises
    `UserError` if there is nothing to make slim.
    """
    alone = list(left_alone)
    group_of: dict[str, str] = {}
    encoder: list[Unit] = []
    for unit in units:
        needing = frozenset().union(*(_tasks(m.layer, places) for m in unit.producers or unit.members))
        # By who makes the channels, not by who reads them: what a decoder reads of the encoder is the encoder's.
        if len(tasks) > 1 and len(needing) == 1:
            group_of[unit.name] = next(iter(needing))
        else:
            encoder.append(unit)
    named = _named(encoder, stages, alone) if stages else _by_resolution(encoder, places)
    group_of |= named
    order = list(stages) if stages else sorted(set(named.values()), key=lambda s: (s != SHARED, s))
    clash = [stage for stage in order if stage in tasks]
    if clash:
        raise UserError(f"stages: {clash[0]!r} is the name of a task; name the stage otherwise")
    if not group_of:
        raise UserError("no channel group of the network can be made slim; see what was left alone with mtlc inspect")
    chosen = tuple(unit for unit in units if unit.name in group_of)
    return WidthTable(widths, round_to, tuple(order), tuple(tasks), chosen, group_of, tuple(alone))


def _by_resolution(units: Sequence[Unit], places: Mapping[str, Place]) -> dict[str, str]:
    first = {u.name: min((_place(m.layer, places).order for m in u.producers), default=0) for u in units}
    ordered = sorted((u for u in units if u.producers), key=lambda u: first[u.name])
    own = [_place(u.producers[0].layer, places).positions for u in ordered]
    # One position is no resolution: pooled gates have it. Such units stand where the tensors around them do.
    present = next((positions for positions in own if positions > 1), 1)
    levels: dict[str, int] = {}
    for unit, positions in zip(ordered, own, strict=True):
        present = positions if positions > 1 else present  # gates, and experts' rows of tokens, are where they stand
        levels[unit.name] = present
    resolutions = list(dict.fromkeys(levels.values()))
    if len(resolutions) > 1:
        return {name: f"stage{resolutions.index(found) + 1}" for name, found in levels.items()}
    return _runs_of_units(ordered)


def _runs_of_units(ordered: Sequence[Unit]) -> dict[str, str]:
    """The stages of an encoder that keeps its resolution: runs of equally many units, and one for what spans them.

    Its residual stream is made by layers of all blocks, so it can follow the width of none of them::

        blocks           1    2  | 3    4  | 5    6  | 7    8
        heads, hidden     stage1 |  stage2 |  stage3 |  stage4        runs of equally many units
        stream           |------------ "stream" ------------|
    """
    spread = [u for u in ordered if u.kind == "channels" and len(u.producers) > 2]
    rest = [u for u in ordered if u not in spread]
    runs = min(MOST_STAGES, len(rest))
    stages = {u.name: f"stage{i * runs // len(rest) + 1}" for i, u in enumerate(rest)}
    return stages | {u.name: SHARED for u in spread}


def _named(units: Sequence[Unit], stages: Mapping[str, Sequence[str]], left_alone: list[LeftAlone]) -> dict[str, str]:
    found: dict[str, str] = {}
    for unit in units:
        layers = [unit.name, *(m.layer for m in unit.producers)]
        stage = next((s for s, patterns in stages.items() if any(fnmatch.filter(layers, p) for p in patterns)), None)
        if stage is None:
            left_alone.append(LeftAlone(unit.name, unit.channels, "in none of the job's stages"))
        else:
            found[unit.name] = stage
    for stage, patterns in stages.items():
        if stage not in found.values():
            raise UserError(f"stages.{stage}: {', '.join(patterns)} matches no channel group of the encoder")
    return found


def _tasks(layer: str, places: Mapping[str, Place]) -> frozenset[str]:
    return _place(layer, places).tasks


def _place(layer: str, places: Mapping[str, Place]) -> Place:
    """A layer's place; of a module that holds no parameter itself, that of its first layer."""
    if layer in places:
        return places[layer]
    inside = [place for path, place in places.items() if path.startswith(f"{layer}.")]
    return inside[0] if inside else Place(0, 1, frozenset())


def _listed(values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list):
        raise TypeError(f"{values!r} is no list")
    return tuple(values)


def _positive(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} is no count")
    return value


def _sound(unit: Unit) -> bool:
    """Whether a unit that was read can be one: a name, counts, and indices for each channel of its layers."""
    named = [unit.name, *(m.layer for m in unit.members), *(text for p, a, _ in unit.attributes for text in (p, a))]
    counts = [unit.channels, unit.multiple, unit.width, *(n for *_, n in unit.attributes)]
    return (
        all(isinstance(name, str) for name in named)
        and all(type(count) is int and count > 0 for count in counts)
        and unit.kind in get_args(Kind)
        and all(m.side in get_args(Side) and len(m.indices) == unit.channels for m in unit.members)
        and all(index >= 0 for m in unit.members for slot in m.indices for index in slot)
    )


def _packed(indices: Iterable[tuple[int, ...]]) -> Any:
    """Indices per channel; ``[start, per]`` where channel c has per indices from start + c · per."""
    slots = [list(slot) for slot in indices]
    per, start = len(slots[0]), slots[0][0] if slots[0] else 0
    # Nearly all units are runs of indices; listed, they would be most of the checkpoint's text.
    if per and all(slot == list(range(start + c * per, start + (c + 1) * per)) for c, slot in enumerate(slots)):
        return {"start": start, "per": per, "channels": len(slots)}
    return slots


def _unpacked(packed: Any) -> tuple[tuple[int, ...], ...]:
    if isinstance(packed, Mapping):
        start, per = int(packed["start"]), int(packed["per"])
        return tuple(tuple(range(start + c * per, start + (c + 1) * per)) for c in range(int(packed["channels"])))
    return tuple(tuple(int(i) for i in slot) for slot in packed)
