"""Draws roofline plots as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mtlc.report.figures.svg import AFTER, BAD, BEFORE, INK, PAGE, svg
from mtlc.report.parts.numbers import as_count
from mtlc.results.devices import DeviceLayer, DeviceResult

COLOURS = {"compute": AFTER, "memory": BAD, "launch": BEFORE}
NUMBERED = 5
NEAR = 0.12
"""Points that are nearer in both logarithms lie on each other."""
LARGEST_POINT, SMALLEST_NUMBERED, SMALLEST_POINT = 420.0, 90.0, 8.0


def slowest(entry: DeviceResult) -> list[DeviceLayer]:
    """The layers that the plot numbers from 1: the slowest of those that multiply."""
    return sorted(_drawn(entry), key=lambda layer: -layer.ms)[:NUMBERED]


@matplotlib.rc_context(PAGE)
def roofline(entry: DeviceResult) -> str | None:
    """One device of a report's ``devices``: a point for each layer that multiplies, as large as its time is long.

    Layers of which no byte passes the memory have no intensity. They stand in a panel of their own, over the work that
    they do, under a flat roof: only the multipliers bound them. None where no layer multiplies, or the roof is not
    known.
    """
    layers = _drawn(entry)
    if not layers or not entry.peak:
        return None
    #     rate |      ____ peak  |  ____________ peak
    #          |     /  o        |     o   o
    #          |    /  o         |   o  o              two panels, one scale of rates
    #          +-----------      +---------------
    #             intensity        work of a layer
    passing = [layer for layer in layers if layer.intensity]
    resident = [layer for layer in layers if not layer.intensity]
    figure = Figure(figsize=(8.4, 4.3), layout="constrained")
    panels = figure.subplots(1, bool(passing) + bool(resident), sharey=True, squeeze=False)[0]
    numbered = slowest(entry)
    longest = max(layer.ms for layer in layers)
    for axes, shown in zip(panels, [found for found in (passing, resident) if found], strict=True):
        places = [(layer.intensity or _work(layer), layer.rate) for layer in shown]
        low, high = _span([x for x, _ in places], _ridge(entry) if shown is passing else None)
        _roof(axes, entry, low, high, sloped=shown is passing)
        _points(axes, shown, places, numbered, longest)
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.set_xlabel(
            "multiply–accumulates for each byte\nthat passes the memory"
            if shown is passing
            else "multiply–accumulates of the layer\n(no byte passes the memory)"
        )
        axes.grid(linewidth=0.5)
        axes.tick_params(which="both", length=0)
        axes.set_axisbelow(True)
    first = panels[0]
    first.set_yscale("log")
    first.set_ylim(min(layer.rate for layer in layers) / 4, entry.peak * 2.5)
    first.set_ylabel("multiply–accumulates per second")
    for axis in (first.yaxis, *(axes.xaxis for axes in panels)):
        axis.set_major_locator(LogLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: as_count(value) if value >= 1 else f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    _legend(panels[-1], {layer.bound for layer in layers})
    return svg(figure, escape(f"Roofline of {entry.title}", quote=True))


def _drawn(entry: DeviceResult) -> list[DeviceLayer]:
    return [layer for layer in entry.layers if layer.rate > 0]


def _work(layer: DeviceLayer) -> float:
    """Multiply–accumulates of a layer: those per second, for as long as it takes."""
    return layer.rate * layer.ms / 1e3


def _ridge(entry: DeviceResult) -> float | None:
    """The intensity at which the roof bends; None where the memory's rate is not known."""
    return entry.peak / entry.peak_bandwidth if entry.peak and entry.peak_bandwidth else None


def _span(places: Sequence[float], ridge: float | None) -> tuple[float, float]:
    """The range of an axis: at least a decade, room for the points at its ends, and the ridge where there is one."""
    inside = [*places, *([] if ridge is None else [ridge])]
    low, high = min(inside), max(inside)
    spare = max(10 * low / high, 1.0) ** 0.5
    return low / spare / 1.8, high * spare * 2


def _roof(axes: Any, entry: DeviceResult, low: float, high: float, sloped: bool) -> None:
    """The roof of the figures, and the one that the fit says is reached. Off the memory, either is flat."""
    x = np.geomspace(low, high, 300)
    #     rate  |        ________ peak          left of the ridge the memory bounds, rate = intensity · bandwidth;
    #           |      /                        right of it the multipliers do
    #           |    /
    #           +------------------ intensity
    roofs: list[tuple[Any, ...]] = [("peak", entry.peak, entry.peak_bandwidth, "solid", 4)]
    if entry.ceilings:
        roofs.append(("fitted", max(entry.ceilings.values()), entry.bandwidth, (0, (4, 3)), -12))
    for label, rate, bandwidth, style, above in roofs:
        y = np.minimum(rate, x * bandwidth) if sloped and bandwidth else np.full_like(x, rate)
        axes.plot(x, y, color=INK, linewidth=1.2, linestyle=style)
        axes.annotate(label, (high, y[-1]), xytext=(-4, above), textcoords="offset points", ha="right")


def _points(
    axes: Any,
    layers: Sequence[DeviceLayer],
    places: Sequence[tuple[float, float]],
    numbered: Sequence[DeviceLayer],
    longest: float,
) -> None:
    """The layers of a panel at their places; those of `numbered` with their number, from 1."""
    found = sorted(zip(layers, places, strict=True), key=lambda pair: -pair[0].ms)
    # Large ones first, so that small ones lie on top of them and are seen.
    for layer, place in found:
        least = SMALLEST_NUMBERED if layer in numbered else SMALLEST_POINT
        size = max(LARGEST_POINT * layer.ms / longest, least)
        axes.scatter(*place, s=size, color=COLOURS.get(layer.bound or "", BEFORE), alpha=0.6, linewidth=0, zorder=3)
    for text, place in _numbers(found, numbered):
        axes.annotate(text, place, ha="center", va="center_baseline", fontsize=9, weight="bold", zorder=4)


def _numbers(
    found: Sequence[tuple[DeviceLayer, tuple[float, float]]], numbered: Sequence[DeviceLayer]
) -> list[tuple[str, tuple[float, float]]]:
    """The numbers of the layers with their places; layers that lie on each other share one: "1, 2"."""
    groups: list[tuple[list[int], tuple[float, float]]] = []
    for layer, place in found:
        if layer not in numbered:
            continue
        number = numbered.index(layer) + 1
        near = (group for group, at in groups if all(abs(np.log(a / b)) < NEAR for a, b in zip(at, place, strict=True)))
        group = next(near, None)
        if group is None:
            groups.append(([number], place))
        else:
            group.append(number)
    return [(", ".join(map(str, sorted(group))), place) for group, place in groups]


def _legend(axes: Any, bounds: set[str | None]) -> None:
    handles = [
        axes.scatter([], [], s=40, color=colour, alpha=0.75, linewidth=0, label=f"waits for {bound}")
        for bound, colour in COLOURS.items()
        if bound in bounds
    ]
    if handles:
        axes.legend(handles=handles, loc="lower right", frameon=False, fontsize=9)
