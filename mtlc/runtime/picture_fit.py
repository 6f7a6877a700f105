"""Fits pictures into a network's input of another size, and brings its outputs back to the size of the picture.

``stretch`` makes the picture as large as the input, whatever its shape; ``pad`` keeps its shape and fills up on both
sides, ``pad_end`` at the right or at the bottom:

    picture        stretch      pad        pad_end
    ┌────────┐     ┌────┐      ┌────┐      ┌────┐
    │   ab   │     │ ab │      │    │      │ ab │
    └────────┘     │    │      │ ab │      │    │
                   └────┘      └────┘      └────┘

Sizes change by linear interpolation; where a picture shrinks, over all pixels that fall together, so that nothing
flickers (as Pillow's bilinear filter does, up to rounding). Nothing but numpy is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

Size = tuple[int, int]
"""Height and width in pixels."""

_A_ROW = 16
"""Numbers that lie beside each other and have one weight: so many are added at once, fewer one by one."""
_AT_ONCE = 1 << 16
"""Numbers that are worked out at a time, so that they stay in the processor's cache."""


@dataclass(frozen=True)
class Fit:
    """Where a picture of size `picture` lies in an input of size `network`: `top`, `left`, `height`, `width`."""

    picture: Size
    network: Size
    top: int
    left: int
    height: int
    width: int

    @classmethod
    def of(cls, picture: Size, network: Size, how: str = "stretch") -> Fit:
        """The fit of a picture into an input. `how` is one of the manifest's `RESIZES`."""
        if how == "stretch":
            return cls(picture, network, 0, 0, *network)
        scale = min(network[0] / picture[0], network[1] / picture[1])
        height = min(max(1, round(picture[0] * scale)), network[0])
        width = min(max(1, round(picture[1] * scale)), network[1])
        top, left = (0, 0) if how == "pad_end" else ((network[0] - height) // 2, (network[1] - width) // 2)
        return cls(picture, network, top, left, height, width)

    def apply(self, image: np.ndarray, fill: float = 0) -> np.ndarray:
        """The picture, uint8 (H, W) or (H, W, C), in the input's size; what it does not cover is `fill`."""
        inner = image
        if image.shape[:2] != (self.height, self.width):
            inner = np.rint(resized(image, (self.height, self.width))).astype(np.uint8)
        if (self.height, self.width) == self.network:
            return inner
        made = np.full((*self.network, *image.shape[2:]), round(fill), np.uint8)
        made[self.top : self.top + self.height, self.left : self.left + self.width] = inner
        return made

    def back(self, output: np.ndarray) -> np.ndarray:
        """An output (…, h, w) of any resolution in the picture's size (…, H, W), float32; what is padding goes."""
        if output.shape[-2:] == self.picture == self.network:
            return output
        made = np.asarray(output, np.float32)
        for axis, side, begin, length in ((-2, 0, self.top, self.height), (-1, 1, self.left, self.width)):
            ratio = output.shape[axis] / self.network[side]
            made = _sampled(made, axis, self.picture[side], begin * ratio, length * ratio)
        return made

    def back_classes(self, scores: np.ndarray) -> np.ndarray:
        """The class of the largest score (C, h, w) in each pixel of the picture, (H, W): scores are resized, one class
        at a time, and not classes, so that borders are smooth and memory is small.
        """
        best = np.array(self.back(scores[0]))
        classes = np.zeros(best.shape, np.min_scalar_type(len(scores)))
        better = np.empty(best.shape, bool)
        for number in range(1, len(scores)):
            one = self.back(scores[number])
            np.greater(one, best, out=better)
            np.copyto(classes, number, where=better)
            np.copyto(best, one, where=better)
        return classes.astype(np.int64)

    def back_boxes(self, rows: np.ndarray) -> np.ndarray:
        """Boxes (…, 4 or more) of the input in pixels of the picture, within it; rows of class -1 stay nothing."""
        made = np.array(rows, np.float32)
        for side, first, begin, length in ((1, 0, self.left, self.width), (0, 1, self.top, self.height)):
            scale = self.picture[side] / length
            made[..., first::2][..., :2] = np.clip((rows[..., first:4:2] - begin) * scale, 0, self.picture[side])
        return made


def resized(image: np.ndarray, size: Size) -> np.ndarray:
    """An array (H, W, …) in another `size`, float32."""
    made = np.asarray(image, np.float32)
    for axis in (0, 1):
        made = _sampled(made, axis, size[axis], 0.0, float(image.shape[axis]))
    return made


def _sampled(values: np.ndarray, axis: int, count: int, begin: float, length: float) -> np.ndarray:
    """`count` values along an axis, evenly spread over the `length` from `begin` on, in places of the axis."""
    if begin == 0 and length == count == values.shape[axis]:
        return values
    axis %= values.ndim
    before, available, after = values.shape[:axis], values.shape[axis], values.shape[axis + 1 :]
    outer, inner = prod(before), prod(after)
    places, weights = _taps(count, begin, length, available)
    made = np.empty((*before, count, *after), np.float32)
    if inner < _A_ROW:  # such as the channels of a pixel: each number of its own is quicker than three at a time
        places = (places[:, None] * inner + np.arange(inner)[:, None]).reshape(count * inner, -1)
        weights = np.repeat(weights, inner, 0)
        from_rows, to_rows = values.reshape(outer, -1), made.reshape(outer, -1)
        step = max(1, _AT_ONCE // to_rows.shape[1])
        for at in range(0, outer, step):
            _add_up(from_rows[at : at + step], 1, places, weights.T, to_rows[at : at + step])
        return made
    step = max(1, _AT_ONCE // inner)
    for one, to in zip(values.reshape(outer, available, inner), made.reshape(outer, count, inner), strict=True):
        for at in range(0, count, step):
            some = slice(at, at + step)
            _add_up(one, 0, places[some], weights[some].T[..., None], to[some])
    return made


def _add_up(values: np.ndarray, axis: int, places: np.ndarray, weights: np.ndarray, made: np.ndarray) -> None:
    """Fill `made` with the weighted sums of what stands at the `places` of an axis.

    In their order, and each product and sum rounded: the C library does so too, to the bit.
    """
    part = np.empty_like(made)
    for number, weight in enumerate(weights):
        to = part if number else made
        np.take(values, places[:, number], axis, out=to, mode="clip")  # with mode "raise" numpy makes a copy first
        to *= weight
        if number:
            made += part


def _taps(count: int, begin: float, length: float, available: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of `count` values the places that it is made of, and their weights: a triangle that is as wide as the
    places that fall together, and at least two.
    """
    scale = length / count
    width = max(scale, 1.0)
    centres = begin + (np.arange(count) + 0.5) * scale
    first = np.floor(centres - width + 0.5).astype(np.int64)
    taps = int(np.ceil(2 * width))
    places = first[:, None] + np.arange(taps)
    weights = np.maximum(0.0, 1 - np.abs((places + 0.5 - centres[:, None]) / width))
    # Nothing of what lies beside the picture: its padding, and what is no place at all.
    low = max(0, int(np.floor(begin + 1e-6)))
    high = min(available, max(low + 1, int(np.ceil(begin + length - 1e-6))))
    weights = np.where((places >= low) & (places < high), weights, 0)
    lost = weights.sum(1) == 0
    places, weights = np.clip(places, low, high - 1), np.where(lost[:, None], 1.0, weights)
    return places, (weights / weights.sum(1, keepdims=True)).astype(np.float32)
