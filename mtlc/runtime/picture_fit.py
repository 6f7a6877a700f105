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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Size = tuple[int, int]
"""Height and width in pixels."""


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
        best = self.back(scores[0])
        classes = np.zeros(best.shape, np.int64)
        for number in range(1, len(scores)):
            one = self.back(scores[number])
            better = one > best
            classes[better] = number
            best = np.where(better, one, best)
        return classes

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
    indices, weights = _taps(count, begin, length, values.shape[axis])
    shape: Sequence[int] = [1] * values.ndim
    made: np.ndarray | None = None
    for place in range(indices.shape[1]):
        shape = [count if at == axis % values.ndim else 1 for at in range(values.ndim)]
        part = np.take(values, indices[:, place], axis) * weights[:, place].reshape(shape)
        made = part if made is None else made + part
    assert made is not None
    return made


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
