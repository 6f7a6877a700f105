"""Finds the borders between labels as lines of one pixel, as the edges of PASCAL-Context are made of its label maps.

The Laplacian of the label map is not 0 on either side of a border, which makes a line of two pixels. This is thinned by
the two-step rule of Guo and Hall (Communications of the ACM 32, 1989), as Lam, Lee and Suen state it (IEEE PAMI 14,
1992, p. 879): a pixel goes if it is on the outline and its going parts nothing and shortens nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def label_edges(labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """1 on the borders between the labels (H, W), 0 elsewhere."""
    if min(labels.shape) < 2:
        return np.zeros(labels.shape, np.uint8)
    # Beyond the picture its second row and column follow, as in OpenCV's Laplacian of the published labels.
    around = np.pad(labels, 1, mode="reflect")
    bent = around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:] - 4 * labels
    return thinned(bent != 0).astype(np.uint8)


def thinned(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The lines of a mask (H, W) in a width of one pixel; what hangs together still does."""
    mask = mask.copy()
    while True:
        before = int(mask.sum())
        for second in (False, True):
            mask &= ~_goes(mask, second)
        if int(mask.sum()) == before:
            return mask


def _goes(mask: NDArray[np.bool_], second: bool) -> NDArray[np.bool_]:
    """Which pixels go in the first or the `second` step."""
    p = np.pad(mask, 1)
    # x1 to x8 are the neighbours from the right on, against the clock:  4 3 2
    #                                                                    5 . 1
    #                                                                    6 7 8
    near = np.array(
        [p[1:-1, 2:], p[:-2, 2:], p[:-2, 1:-1], p[:-2, :-2], p[1:-1, :-2], p[2:, :-2], p[2:, 1:-1], p[2:, 2:]]
    )
    odd, even = near[0::2], near[1::2]
    after = np.roll(odd, -1, axis=0)  # x3, x5, x7 and x1 again
    parts = (~odd & (even | after)).sum(0)  # the sides on which something begins: one means that nothing is parted
    pairs = np.minimum((odd | even).sum(0), (even | after).sum(0))  # at least two: it is not the end of a line
    x1, x2, x3, x4, x5, x6, x7, x8 = near
    side = ((x6 | x7 | ~x4) & x5) if second else ((x2 | x3 | ~x8) & x1)
    result: NDArray[np.bool_] = mask & (parts == 1) & (pairs >= 2) & (pairs <= 3) & ~side
    return result
