"""Roofline plots as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np

from mtlc.hw.plots import AFTER, BAD, BEFORE, INK, PAGE, _figure, _short, svg

COLOURS = {"compute": AFTER, "memory": BAD, "launch": BEFORE}
NAMED = 3
LARGEST_POINT = 420.0


@matplotlib.rc_context(PAGE)
def roofline(entry: Mapping[str, Any]) -> str | None:
    """One device of a report's ``devices``: a point for each layer that multiplies, as large as its time is long.

    None where there is no such layer, or the roof is not known.
    """
    layers = [layer for layer in entry["layers"] if layer["rate"] > 0]
    if not layers or not entry["peak"]:
        return None
    figure, (axes,) = _figure(8.4, 4.3)
    inside = [layer["intensity"] for layer in layers if layer["intensity"]]
    low, high = _span(entry, inside)
    # Where no byte passes the memory the intensity has no end: such layers stand at the right edge.
    edge = high * 3
    _roof(axes, entry, low, edge)
    longest = max(layer["ms"] for layer in layers)
    for layer in layers:
        axes.scatter(
            layer["intensity"] or edge,
            layer["rate"],
            s=max(LARGEST_POINT * layer["ms"] / longest, 6.0),
            color=COLOURS.get(layer["bound"] or "", BEFORE),
            alpha=0.62,
            linewidth=0,
            zorder=3,
        )
    _name(axes, layers, edge)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low / 1.6, edge * 2.2)
    axes.set_ylim(min(layer["rate"] for layer in layers) / 4, entry["peak"] * 2.5)
    axes.set_xlabel("multiply–accumulates for each byte that passes the memory")
    axes.set_ylabel("multiply–accumulates per second")
    axes.grid(linewidth=0.5)
    axes.set_axisbelow(True)
    _legend(axes, {layer["bound"] for layer in layers}, any(layer["intensity"] is None for layer in layers))
    return svg(figure, escape(f"Roofline of {entry['title']}", quote=True))


def _span(entry: Mapping[str, Any], inside: Sequence[float]) -> tuple[float, float]:
    ridge = [entry["peak"] / entry["peak_bandwidth"]] if entry["peak_bandwidth"] else []
    return min([*inside, *ridge, 1.0]), max([*inside, *ridge, 10.0])


def _roof(axes: Any, entry: Mapping[str, Any], low: float, edge: float) -> None:
    x = np.geomspace(low / 2, edge * 3, 200)
    peak = np.full_like(x, entry["peak"])
    if entry["peak_bandwidth"]:
        peak = np.minimum(peak, x * entry["peak_bandwidth"])
    axes.plot(x, peak, color=INK, linewidth=1.2)
    axes.annotate("peak", (edge * 2, entry["peak"]), xytext=(0, 4), textcoords="offset points", ha="right")
    if not entry["ceilings"]:
        return
    best = max(entry["ceilings"].values())
    reached = np.full_like(x, best)
    if entry["bandwidth"]:
        reached = np.minimum(reached, x * entry["bandwidth"])
    axes.plot(x, reached, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate("fitted", (edge * 2, best), xytext=(0, -12), textcoords="offset points", ha="right")


def _name(axes: Any, layers: Sequence[Mapping[str, Any]], edge: float) -> None:
    """Names for the slowest layers, none over another."""
    places: list[tuple[float, float]] = []
    for layer in sorted(layers, key=lambda layer: -layer["ms"])[: 2 * NAMED]:
        x, y = layer["intensity"] or edge, layer["rate"]
        if len(places) == NAMED or any(abs(np.log10(y / other[1])) < 0.25 for other in places):
            continue
        places.append((x, y))
        right = x > edge / 30
        axes.annotate(
            f"{_short(layer['name'] or '(network)', 26)}, {layer['ms']:.3g} ms", (x, y),
            xytext=(-11 if right else 11, 0), textcoords="offset points", va="center",
            ha="right" if right else "left", fontsize=9, zorder=4,
        )  # fmt: skip


def _legend(axes: Any, bounds: set[str | None], on_chip: bool) -> None:
    handles = [
        axes.scatter([], [], s=40, color=colour, alpha=0.75, linewidth=0, label=f"waits for {bound}")
        for bound, colour in COLOURS.items()
        if bound in bounds
    ]
    title = "at the right edge: no byte passes the memory" if on_chip else None
    if handles or title:
        axes.legend(handles=handles, loc="upper left", frameon=False, fontsize=9, title=title, title_fontsize=9)
