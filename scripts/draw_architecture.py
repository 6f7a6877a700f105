"""Draws the rooms of mtlc by floor, and which room imports which, into docs/architecture.svg and .png.

    python scripts/draw_architecture.py            # draw
    python scripts/draw_architecture.py --check    # fail if the picture in docs has other rooms, floors or arrows

Rooms are the packages and modules right under `mtlc`; floors are the layers that import-linter holds (pyproject.toml);
imports are read from the code by grimp, those inside functions too. An arrow from A to B is left out where B is reached
through other rooms as well (the transitive reduction): A may import B directly all the same.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import grimp
from scipy.optimize import isotonic_regression

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"
Edge = tuple[str, str]
INK, PALE, BANDS = "#1f2d3d", "#8595a6", ("#f4f7fa", "#e9eff5")
WIDTH, HEIGHT, GAP = 2.3, 0.86, 0.36  # inches: a room, and the space between two floors


def floors() -> list[list[str]]:
    """The rooms of each floor, from the top down, as the layers' contract in pyproject.toml has them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[name.strip().removeprefix("mtlc.") for name in layer.split("|")] for layer in layers]


def imports() -> set[Edge]:
    """(A, B) for every two rooms of which A imports B anywhere."""
    graph = grimp.build_graph("mtlc", cache_dir=None)
    pairs = ((a, b) for a in graph.modules for b in graph.find_modules_directly_imported_by(a))
    rooms = ((a.split(".")[1:2], b.split(".")[1:2]) for a, b in pairs)
    return {(a[0], b[0]) for a, b in rooms if a and b and a != b}


def arrows(edges: Iterable[Edge]) -> set[Edge]:
    """The edges that say all: without those that a longer way says too. There must be no circle."""
    there = set(edges)

    @cache
    def reached(room: str) -> frozenset[str]:
        """All that the room imports, directly or around."""
        return frozenset(end for start, to in there if start == room for end in (to, *reached(to)))

    return {(a, b) for a, b in there if not any(b in reached(to) for start, to in there if start == a and to != b)}


def about(room: str) -> str:
    """The first sentence of the room's docstring."""
    path = ROOT / "mtlc" / room / "__init__.py"
    source = (path if path.exists() else path.parent.with_suffix(".py")).read_text()
    text = ast.get_docstring(ast.parse(source)) or ""
    return re.split(r"\.(?:\s|$)", " ".join(text.split()), maxsplit=1)[0].replace("`", "")


@dataclass(frozen=True)
class Layout:
    """The middle of every room, and the points that every arrow goes through: (x, y) in inches."""

    rooms: dict[str, tuple[float, float]]
    ways: dict[Edge, list[tuple[float, float]]]
    width: float


def layout(levels: list[list[str]], edges: set[Edge]) -> Layout:
    """Places rooms as Sugiyama et al. (1981) do: a way past a floor takes a place on it, and places are sorted by what
    they are joined to on the floors above and below, again and again."""
    level = {room: number for number, rooms in enumerate(levels) for room in rooms}
    rows: list[list[str]] = [list(rooms) for rooms in levels]
    links: list[Edge] = []
    chains: dict[Edge, list[str]] = {}
    for a, b in sorted(edges):
        between = [f"{a}>{b}@{number}" for number in range(level[a] + 1, level[b])]
        for place in between:
            rows[int(place.rpartition("@")[2])].append(place)
        chains[a, b] = [a, *between, b]
        links += pairwise(chains[a, b])
    joined: dict[str, list[str]] = {place: [] for row in rows for place in row}
    for a, b in links:
        joined[a].append(b)
        joined[b].append(a)
    at: dict[str, float] = {}
    widest = max(sum(map(_size, row)) for row in rows)
    for row in rows:
        at |= _spread(row, dict.fromkeys(row, 0.0), widest)
    for _ in range(30):
        for row in (*rows, *reversed(rows)):
            wanted = {place: sum(at[other] for other in joined[place]) / max(1, len(joined[place])) for place in row}
            at |= _spread(row, wanted, widest)
    y = {number: -number * (HEIGHT + GAP) for number in range(len(levels))}
    ways = {}
    for edge, chain in chains.items():
        points = [(at[edge[0]], y[level[edge[0]]] - HEIGHT / 2)]
        for place in chain[1:-1]:
            middle = y[int(place.rpartition("@")[2])]
            points += [(at[place], middle + HEIGHT / 2), (at[place], middle - HEIGHT / 2)]
        ways[edge] = [*points, (at[edge[1]], y[level[edge[1]]] + HEIGHT / 2)]
    return Layout({room: (at[room], y[level[room]]) for room in level}, _apart(ways), widest + 0.3)


def _spread(row: list[str], wanted: dict[str, float], widest: float) -> dict[str, float]:
    """Places of a row as near as they get to where they want to be, with room between them, within `widest` inches."""
    order = sorted(row, key=lambda place: (wanted[place], place))
    sizes = [_size(place) for place in order]
    offsets = [sum(sizes[:index]) + size / 2 for index, size in enumerate(sizes)]
    # Less its offset, every place must not lie left of the one before: the nearest such row is an isotonic regression.
    free = isotonic_regression([wanted[place] - offset for place, offset in zip(order, offsets, strict=True)]).x
    first = [min(max(x, -widest / 2), widest / 2 - sum(sizes)) for x in free]
    return {place: x + offset for place, x, offset in zip(order, first, offsets, strict=True)}


def _size(place: str) -> float:
    """Inches that a room, or a way past a floor, takes."""
    return 0.22 if "@" in place else WIDTH + 0.22


def _apart(ways: dict[Edge, list[tuple[float, float]]]) -> dict[Edge, list[tuple[float, float]]]:
    """Ways that leave or reach one room side by side, in the order of where they come from or go to."""
    found = {edge: list(points) for edge, points in ways.items()}
    for end, towards in ((0, 1), (-1, -2)):
        by_room: dict[str, list[Edge]] = {}
        for edge in ways:
            by_room.setdefault(edge[end], []).append(edge)
        for edges in by_room.values():
            edges.sort(key=lambda edge: ways[edge][towards][0])
            step = min(0.35, (WIDTH - 0.4) / len(edges))
            for place, edge in enumerate(edges):
                x, y = ways[edge][end]
                found[edge][end] = (x + (place - (len(edges) - 1) / 2) * step, y)
    return found


def draw(levels: list[list[str]], edges: set[Edge]) -> None:
    """Writes the picture twice. Every room and arrow has an id in the SVG by which `drawn` finds it again."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "mtlc", "font.family": "sans-serif"}
    from matplotlib import pyplot as plt
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
    from matplotlib.path import Path as Line

    plan = layout(levels, edges)
    top, bottom = HEIGHT / 2 + GAP / 2, -(len(levels) - 1) * (HEIGHT + GAP) - HEIGHT / 2 - GAP / 2
    figure, axes = plt.subplots(figsize=(plan.width, top - bottom))
    figure.subplots_adjust(0, 0, 1, 1)
    axes.set(xlim=(-plan.width / 2, plan.width / 2), ylim=(bottom, top))
    axes.axis("off")
    for number in range(len(levels)):
        middle = -number * (HEIGHT + GAP)
        corner = (-plan.width / 2, middle - (HEIGHT + GAP) / 2)
        axes.add_patch(Rectangle(corner, plan.width, HEIGHT + GAP, color=BANDS[number % 2], lw=0, zorder=0))
    for (a, b), points in plan.ways.items():
        vertices, codes = [points[0]], [Line.MOVETO]
        for (x0, y0), (x1, y1) in pairwise(points):
            middle = (y0 + y1) / 2
            vertices += [(x0, middle), (x1, middle), (x1, y1)]
            codes += [Line.CURVE4] * 3
        arrow = FancyArrowPatch(
            path=Line(vertices, codes), arrowstyle="-|>", mutation_scale=9, color=PALE, lw=1.2, zorder=1,
            gid=f"arrow:{a}:{b}",
        )  # fmt: skip
        axes.add_patch(arrow)
    for number, rooms in enumerate(levels):
        for room in rooms:
            x, y = plan.rooms[room]
            box = FancyBboxPatch(
                (x - WIDTH / 2 + 0.05, y - HEIGHT / 2 + 0.05), WIDTH - 0.1, HEIGHT - 0.1, boxstyle="round,pad=0.05",
                facecolor="white", edgecolor=INK, lw=1.1, zorder=2, gid=f"room:{room}:{number}",
            )  # fmt: skip
            axes.add_patch(box)
            axes.text(x, y + 0.25, room, ha="center", va="center", weight="bold", size=11, color=INK, zorder=3)
            words = textwrap.shorten(about(room), 112, placeholder=" …")
            axes.text(
                x, y - 0.1, textwrap.fill(words, 34), ha="center", va="center", size=8.5, color=INK, zorder=3,
                linespacing=1.1,
            )  # fmt: skip
    figure.savefig(PICTURE, metadata={"Date": None, "Creator": None})
    figure.savefig(PICTURE.with_suffix(".png"), dpi=100, metadata={"Software": None})


def drawn(svg: str) -> tuple[set[tuple[str, int]], set[Edge]]:
    """The rooms with their floors, and the arrows, of a picture."""
    rooms = {(name, int(floor)) for name, floor in re.findall(r'id="room:(\w+):(\d+)"', svg)}
    return rooms, {(a, b) for a, b in re.findall(r'id="arrow:(\w+):(\w+)"', svg)}


def differences(svg: str) -> list[str]:
    """A line for each room or arrow that the picture has and the code has not, or the other way round."""
    rooms, edges = drawn(svg)
    wanted = {(room, number) for number, level in enumerate(floors()) for room in level}
    there = arrows(imports())
    lines = [f"floor {floor + 1}: {room} is not drawn" for room, floor in sorted(wanted - rooms)]
    lines += [f"floor {floor + 1}: {room} is drawn, and is not there" for room, floor in sorted(rooms - wanted)]
    lines += [f"{a} imports {b}: not drawn" for a, b in sorted(there - edges)]
    return lines + [f"{a} imports {b}: drawn, and not so" for a, b in sorted(edges - there)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="draw nothing; fail if the picture is not that of the code"
    )
    if parser.parse_args().check:
        if lines := differences(PICTURE.read_text()):
            sys.exit("\n".join([*lines, "run python scripts/draw_architecture.py"]))
        return
    draw(floors(), arrows(imports()))


if __name__ == "__main__":
    main()
