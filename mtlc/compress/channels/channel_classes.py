"""Keeps which channels of a network belong together: a union-find over numbered channels, with reasons against cutting.

Every index along every dimension of every weight is one channel, a number from 1. The graph of the network says which
are the same (`mtlc.compress.channels.label_rules`); those that end in one class can only be removed together. 0 stands
for what no channel owns, such as padding.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Channels = NDArray[np.int64]
"""Numbers of channels, 0 for none."""


class ChannelClasses:
    """Channels and the classes that they were joined to; operations take whole arrays of channels."""

    def __init__(self) -> None:
        self._leader = np.zeros(1, dtype=np.int64)
        self._kept: list[tuple[Channels, str]] = []
        self._notes: dict[str, list[Channels]] = {}

    def new(self, count: int) -> Channels:
        """Numbers of `count` channels, each a class of its own."""
        fresh = np.arange(len(self._leader), len(self._leader) + count, dtype=np.int64)
        self._leader = np.concatenate([self._leader, fresh])
        return fresh

    def of(self, channels: Channels) -> Channels:
        """The class of each channel: the smallest number in it."""
        found = self._leader[channels]
        while True:
            further = self._leader[found]
            if np.array_equal(further, found):
                break
            found = further
        self._leader[channels] = found  # short paths for the next question
        return found

    def join(self, one: Channels, other: Channels) -> None:
        """Make the channels at equal places of two arrays (which broadcast) one class each; 0 joins nothing."""
        one, other = (np.ravel(side) for side in np.broadcast_arrays(one, other))
        both = (one > 0) & (other > 0)
        one, other = one[both], other[both]
        # An array may ask for several joins of one class at once: each round makes one of them, the smallest.
        while True:
            first, second = self.of(one), self.of(other)
            apart = first != second
            if not apart.any():
                return
            low, high = np.minimum(first, second)[apart], np.maximum(first, second)[apart]
            np.minimum.at(self._leader, high, low)

    def join_all(self, channels: Channels) -> None:
        """Make all of these one class."""
        present = channels[channels > 0]
        if len(present):
            self.join(present[:1], present)

    def keep(self, channels: Channels, why: str) -> None:
        """These can never go, and nothing that is in their classes now or later."""
        present = np.unique(channels[channels > 0])
        if len(present):
            self._kept.append((present, why))

    def are_kept(self, channels: Channels) -> bool:
        """Whether it is known by now that none of these can go."""
        reasons = self.reasons()
        return all(one in reasons for one in np.unique(self.of(channels)).tolist() if one > 0)

    def note(self, channels: Channels, what: str) -> None:
        """Remember something of these and all that is in their classes; see `noted`."""
        present = np.unique(channels[channels > 0])
        if len(present):
            self._notes.setdefault(what, []).append(present)

    def noted(self, what: str) -> set[int]:
        """The classes of which something was noted."""
        return self._classes(self._notes.get(what, ()))

    def reasons(self) -> dict[int, str]:
        """Why classes cannot go, by class; the first reason that was given for any of their channels."""
        found: dict[int, str] = {}
        for channels, why in self._kept:
            for one in self.of(channels).tolist():
                found.setdefault(one, why)
        return found

    def _classes(self, arrays: Iterable[Channels]) -> set[int]:
        return {one for channels in arrays for one in self.of(channels).tolist()}
