"""Lines of one pixel: what they look like is worked out by hand, what hangs together stays so."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import ndimage

from mtlc.zoo.line_thinning import label_edges, thinned

EVERY = np.ones((3, 3), int)


def shown(text: str) -> np.ndarray:
    return np.array([[mark == "#" for mark in line] for line in text.split()])


def test_a_thick_line_becomes_a_thin_one():
    """Guo and Hall's two steps take the right and upper outline first, then the left and lower one."""
    thick = shown(
        """
        .......
        .#####.
        .#####.
        .#####.
        .......
        """
    )
    found = thinned(thick)
    np.testing.assert_array_equal(found.sum(0) <= 1, True)
    np.testing.assert_array_equal(np.flatnonzero(found.any(1)), [2])  # the middle row
    assert found[2].sum() >= 3


def test_the_border_between_two_labels_is_one_pixel_wide():
    labels = np.zeros((6, 8), np.int64)
    labels[:, 4:] = 7
    found = label_edges(labels)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[1:-1].sum(1), 1)  # one pixel in each row
    assert set(np.flatnonzero(found.any(0))) <= {3, 4}
    assert label_edges(np.full((5, 5), 3)).sum() == 0
    assert label_edges(np.zeros((1, 5), np.int64)).tolist() == [[0] * 5]


def test_a_bend_that_cancels_is_no_edge_as_published():
    """1 to the left and −1 to the right add up to 0 in the Laplacian: a ramp has no border inside."""
    ramp = np.tile(np.arange(6), (4, 1))
    found = label_edges(ramp)
    assert not found[:, 1:-1].any()
    assert found[:, [0, -1]].any()  # reflection bends it there


@settings(max_examples=60, deadline=None)
@given(npst.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_nothing_falls_apart_and_nothing_is_added(mask: np.ndarray):
    found = thinned(mask)
    assert not (found & ~mask).any()
    assert ndimage.label(found, EVERY)[1] == ndimage.label(mask, EVERY)[1]
    np.testing.assert_array_equal(thinned(found), found)  # there is nothing more to do
