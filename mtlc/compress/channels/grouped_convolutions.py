"""Joins coupled channel groups that grouped convolutions tie together, and finds the smallest parts that can go.

A group of a convolution makes its outputs from its inputs alone, so both go together: the channels that feed it, in one
coupled group, and those that it makes, in another. Where several grouped convolutions touch the same coupled groups, a
part must hold whole groups of them all: 4 groups followed by 6 leave 2 parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

Side = Literal["out", "in", "both", "dim0", "dim1", "dim2", "dim3", "dim4", "dim5"]
"""What of a layer loses channels, or which dimension of a tensor that is no layer's weight."""
Slots = dict[tuple[str, Side], list[list[int]]]
"""By layer and side, the layer's indices that follow each channel."""
Share = list[tuple[int, int]]
"""Channels that go together: (number of the coupled group, its channel)."""


@dataclass(eq=False)
class Coupled:
    """A coupled channel group as torch-pruning finds it.

    `grouped` are the sides of grouped convolutions in it, `slots` those of all other layers. `why` says why it cannot
    go, `inside` that a unit of heads covers it.
    """

    name: str
    channels: int
    why: str | None = None
    slots: Slots = field(default_factory=dict)
    grouped: Slots = field(default_factory=dict)
    maskable: bool = True
    inside: bool = False


def is_grouped(module: nn.Module) -> bool:
    """Whether it is a convolution of several groups, but not depth-wise.

    One whose groups make a single channel each is taken for depth-wise by the tracer, whatever they read: not counted.
    """
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and 1 < module.groups < module.out_channels


def tied(coupled: Iterable[Coupled]) -> Iterator[list[Coupled]]:
    """The coupled groups that grouped convolutions touch, those that have a convolution in common together."""
    parts: list[tuple[set[str], list[Coupled]]] = []
    for one in coupled:
        if one.grouped:
            convs, pieces = {layer for layer, _ in one.grouped}, [one]
            # One coupled group between two convolutions makes one part of what were two so far.
            for part in [part for part in parts if part[0] & convs]:
                convs, pieces = part[0] | convs, part[1] + pieces
                parts.remove(part)
            parts.append((convs, pieces))
    yield from (pieces for _, pieces in parts)


def whole_groups(pieces: Sequence[Coupled], convs: Mapping[str, nn.Module]) -> list[Share]:
    """The smallest sets of channels that hold whole groups of all convolutions, in the order of the first piece's
    channels.

    None at all if a convolution reads or makes a channel that is in no piece.
    """
    # Two convolutions in a row, of 4 and of 6 groups, tie the 12 channels between them. A part ends where groups of
    # both end, here after channel 5:
    #
    #     channels   0  1  2  3  4  5 | 6  7  8  9 10 11
    #     4 groups   |------| |------|  |------| |------|
    #     6 groups   |---| |---| |---|  |---| |---| |---|
    #     parts      |--------------|   |--------------|
    #
    # Such parts are the connected components over "in one group of a convolution": a union-find of channels.
    nodes = [(p, channel) for p, piece in enumerate(pieces) for channel in range(piece.channels)]
    leader = {node: node for node in nodes}

    def find(node: tuple[int, int]) -> tuple[int, int]:
        while leader[node] != node:
            # Halve the path on the way, so that long chains of channels stay short.
            leader[node] = leader[leader[node]]
            node = leader[node]
        return node

    for layer, conv in convs.items():
        assert isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        # For each group of this convolution the channel that was met first; the others join it, from either side.
        first: dict[int, tuple[int, int]] = {}
        sides: tuple[tuple[Side, int], ...] = (("in", conv.in_channels), ("out", conv.out_channels))
        for side, size in sides:
            seen = set()
            for p, piece in enumerate(pieces):
                for channel, indices in enumerate(piece.grouped.get((layer, side), ())):
                    seen.update(indices)
                    for index in indices:
                        # Groups are equal, consecutive runs of the indices, on the input side and on the output side
                        # alike.
                        group = index * conv.groups // size
                        leader[find((p, channel))] = find(first.setdefault(group, (p, channel)))
            # A channel that no piece holds cannot go, and without it no share is known to be whole.
            if len(seen) != size:
                return []
    shares: dict[tuple[int, int], Share] = {}
    for node in nodes:
        shares.setdefault(find(node), []).append(node)
    return list(shares.values())


def common_slots(pieces: Sequence[Coupled], shares: Sequence[Share]) -> Slots:
    """The layers' indices by share. A grouped convolution's are its outputs: its inputs go with them."""
    slots: Slots = {}
    for number, share in enumerate(shares):
        for p, channel in share:
            made: Slots = {(layer, "both"): s for (layer, side), s in pieces[p].grouped.items() if side == "out"}
            for key, indices in {**pieces[p].slots, **made}.items():
                slots.setdefault(key, [[] for _ in shares])[number] += indices[channel]
    return {key: [sorted(set(indices)) for indices in part] for key, part in slots.items()}
