"""Rows of a layered drawing, worked out by hand."""

from __future__ import annotations

import random
from itertools import pairwise

from mtlc.report.figures.layered_layout import _crossings, layered_layout


def test_a_node_stands_below_all_that_it_reads_and_long_edges_bend() -> None:
    #  0 ─▶ 1 ─▶ 2 ─▶ 3      and 0 ─▶ 3, with two bends
    found = layered_layout(4, [(0, 1), (1, 2), (2, 3), (0, 3)])
    assert [sorted(row) for row in found.rows] == [[0], [1, 4], [2, 5], [3]]
    assert found.routes == [[0, 1], [0, 4, 5, 3], [1, 2], [2, 3]]
    assert found.backward == []


def test_an_edge_against_the_order_goes_up_and_moves_nothing() -> None:
    found = layered_layout(3, [(0, 1), (1, 2), (2, 0)])
    assert found.rows == [[0], [1], [2]]
    assert found.backward == [(2, 0)]
    assert [0, 2] not in found.routes


def test_crossed_edges_are_uncrossed() -> None:
    #  0   1            0   1
    #    ╳       ─▶     │   │
    #  2   3            3   2
    found = layered_layout(4, [(0, 3), (1, 2)])
    assert found.rows == [[0, 1], [3, 2]]


def test_the_same_graph_has_the_same_layout_and_never_more_crossings_than_as_given() -> None:
    rng = random.Random(0)
    for _ in range(20):
        edges = {tuple(sorted(rng.sample(range(14), 2))) for _ in range(24)}
        first, again = layered_layout(14, sorted(edges)), layered_layout(14, sorted(edges, reverse=True))
        assert first == again
        below: dict[int, list[int]] = {}
        for route in first.routes:
            for upper, lower in pairwise(route):
                below.setdefault(upper, []).append(lower)
        given = [sorted(row) for row in first.rows]
        assert _crossings(first.rows, below) <= _crossings(given, below)
        row_of = {node: index for index, row in enumerate(first.rows) for node in row}
        assert sorted(row_of) == sorted(node for row in first.rows for node in row)
        assert all(row_of[lower] == row_of[upper] + 1 for route in first.routes for upper, lower in pairwise(route))


def test_nothing_is_a_layout_too() -> None:
    assert layered_layout(0, []).rows == []
