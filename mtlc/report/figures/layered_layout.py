"""Lays out a directed graph in rows from top to bottom: which node stands in which row, and in which order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

SWEEPS = 6
"""How often rows are ordered by their neighbours above and below. Rows settle in two or three."""

Edge = tuple[int, int]


@dataclass
class LayeredLayout:
    """Rows of nodes, numbered as they were given, and routes of edges; numbers from `nodes` on are bends of edges."""

    nodes: int
    rows: list[list[int]]
    """Nodes and bends of each row, from left to right."""
    routes: list[list[int]] = field(default_factory=list)
    """For each edge that goes down its two ends, with the bends between them."""
    backward: list[Edge] = field(default_factory=list)
    """Edges that go up."""


def layered_layout(nodes: int, edges: Sequence[Edge]) -> LayeredLayout:
    """The layout of `nodes` nodes in the order in which they run (Sugiyama's method; the same for the same graph).

    An edge against that order goes up and moves no node. A node stands one row below the lowest that it reads from.
    Rows are ordered by the mean place of what their nodes are joined with, above and below in turns.
    """
    forward = sorted({edge for edge in edges if edge[0] < edge[1]})
    backward = sorted({edge for edge in edges if edge[0] > edge[1]})
    ranks = [0] * nodes
    for start, end in forward:  # sorted by start, and a node's own row is final before its edges are looked at
        ranks[end] = max(ranks[end], ranks[start] + 1)
    rows: list[list[int]] = [[] for _ in range(max(ranks, default=-1) + 1)]
    for node, rank in enumerate(ranks):
        rows[rank].append(node)
    layout = LayeredLayout(nodes, rows, backward=backward)
    bends = nodes
    for start, end in forward:
        route = [start]
        for rank in range(ranks[start] + 1, ranks[end]):
            rows[rank].append(bends)
            route.append(bends)
            bends += 1
        layout.routes.append([*route, end])
    _order(layout)
    return layout


def _order(layout: LayeredLayout) -> None:
    above: dict[int, list[int]] = {}
    below: dict[int, list[int]] = {}
    for route in layout.routes:
        for upper, lower in itertools.pairwise(route):
            above.setdefault(lower, []).append(upper)
            below.setdefault(upper, []).append(lower)
    place = {node: float(index) for row in layout.rows for index, node in enumerate(row)}
    best, least = [list(row) for row in layout.rows], _crossings(layout.rows, below)
    for sweep in range(SWEEPS):
        joined, rows = (above, layout.rows[1:]) if sweep % 2 == 0 else (below, layout.rows[-2::-1])
        for row in rows:
            means = {
                node: sum(place[one] for one in joined[node]) / len(joined[node]) if node in joined else place[node]
                for node in row
            }
            row.sort(key=means.__getitem__)  # stable: a tie stays as it was
            # Places are centred, so that a row of one and a row of three compare.
            place.update({node: index - (len(row) - 1) / 2 for index, node in enumerate(row)})
        crossings = _crossings(layout.rows, below)
        if crossings < least:
            best, least = [list(row) for row in layout.rows], crossings
    layout.rows[:] = best


def _crossings(rows: Sequence[Sequence[int]], below: dict[int, list[int]]) -> int:
    """How many edges between neighbouring rows cross."""
    count = 0
    for upper, lower in itertools.pairwise(rows):
        place = {node: index for index, node in enumerate(lower)}
        ends: list[int] = []
        for node in upper:
            reached = sorted(place[one] for one in below.get(node, ()))
            count += sum(before > now for now in reached for before in ends)
            ends += reached
    return count
