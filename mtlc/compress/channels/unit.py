"""Describes a unit: channels that can only be removed together, and the tensors that they lie in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from mtlc.compress.channels.grouped_convolutions import Side

Kind = Literal["channels", "groups", "heads", "experts"]


@dataclass(frozen=True)
class Member:
    """A layer's part in a unit: which side loses channels, and for every unit channel the layer's own indices.

    A tensor that is no layer's weight, such as a scale of every channel, is a member of its own: `layer` is its name,
    and `side` the dimension that loses channels.
    """

    layer: str
    side: Side
    indices: tuple[tuple[int, ...], ...]

    def of(self, channels: Iterable[int]) -> list[int]:
        """The layer's indices of the unit's `channels`."""
        return [index for channel in channels for index in self.indices[channel]]


@dataclass(frozen=True)
class Unit:
    """A coupled channel group.

    `maskable` units can be tried by zeroing weights: the numbers are those of the pruned network.

    A channel of kind "heads" is one attention head, `width` channels of its layers; one of kind "groups" holds whole
    groups of every grouped convolution, a multiple of `width` channels of each layer; one of kind "experts" is the
    hidden channel of that index in every expert of a layer. `attributes` are (module, attribute, what a channel takes
    of it).
    """

    name: str
    channels: int
    members: tuple[Member, ...]
    maskable: bool
    multiple: int = 1  # kept channels are a multiple of this: a group norm needs equal groups
    kind: Kind = "channels"
    width: int = 1
    attributes: tuple[tuple[str, str, int], ...] = ()
    # What the surgery does not depend on, and checkpoints do not keep:
    multiplied: bool = field(
        default=False, compare=False
    )  # whether something else than a layer multiplies its channels, such as attention
    residual: bool = field(
        default=False, compare=False
    )  # whether it is a sum of several layers' outputs that attention reads
    by_layers: bool = field(
        default=True, compare=False
    )  # whether it lies in layers' own tensors alone, and in whole groups of them

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
