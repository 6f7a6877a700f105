"""Describes a configuration of a slimmable network: a width for every stage of the encoder and for every decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtlc.errors import UserError

LEAST_SHARE = 0.9
"""A kept count is never under this share of what the width asks for (slimmable networks' rounding)."""


@dataclass(frozen=True, order=True)
class Configuration:
    """`encoder` holds a width per stage, `decoders` one per task, in the order of the supernet's stages and tasks."""

    encoder: tuple[float, ...]
    decoders: tuple[float, ...]

    def __str__(self) -> str:
        return (
            f"encoder {' '.join(f'{w:g}' for w in self.encoder)}, decoders {' '.join(f'{w:g}' for w in self.decoders)}"
        )

    def decoder_of(self, tasks: Sequence[str]) -> Mapping[str, float]:
        """The decoders' widths by task."""
        return dict(zip(tasks, self.decoders, strict=True))


def checked_widths(widths: Sequence[float]) -> tuple[float, ...]:
    """`widths` in rising order. Raises `UserError` for a width outside 0…1, one named twice, or a set without 1.0."""
    for width in widths:
        if not 0 < width <= 1:
            raise UserError(f"widths: {width:g} must be above 0 and at most 1")
    if len(set(widths)) < len(widths):
        raise UserError(f"widths: {', '.join(f'{w:g}' for w in sorted(widths))} names a width twice")
    if 1.0 not in widths:
        raise UserError(
            f"widths: {', '.join(f'{w:g}' for w in widths)} lacks 1.0: the widest network is what the others learn from"
        )
    if len(widths) < 2:
        raise UserError("widths: 1.0 alone leaves nothing to choose; add a narrower one")
    return tuple(sorted(widths))


def kept_channels(channels: int, width: float, multiple: int) -> int:
    """How many of `channels` a width keeps: the nearest multiple, one more if that is under 90 % of what was asked for.

    Width 1 keeps them all, a multiple or not.
    """
    if width >= 1:
        return channels
    asked = width * channels
    # Rounding down may take more than a tenth of a narrow layer; then the next multiple up serves the width better.
    kept = max(multiple, int(asked + multiple / 2) // multiple * multiple)
    if kept < LEAST_SHARE * asked:
        kept += multiple
    return min(kept, channels)


def step_of(width: int, multiple: int, round_to: int) -> int:
    """By how many unit channels a unit shrinks, so that the channels of its layers fall in steps of `round_to`.

    `width` is how many channels of a layer one of the unit has (a head's, for one), `multiple` what the unit itself
    asks for.
    """
    return math.lcm(multiple, max(1, round_to // math.gcd(round_to, width)) if width < round_to else 1)
