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
LARGEST_POINT, SMALLEST_NUMBERED, SMALLEST_POINT = 420.0, 90.0, 8.0


def slowest(entry: DeviceResult) -> list[DeviceLayer]:
    """The layers that the plot numbers from 1: the slowest of those that multiply."""
    return sorted(_drawn(entry), key=lambda layer: -layer.ms)[:NUMBERED]


@matplotlib.rc_context(PAGE)
def roofline(entry: DeviceResult) -> str | None:
    """One device of a report's ``devices``: a point for each layer that multiplies, as large as its time is long.

    None where there is no such layer, or the roof is not known.
    """
    layers = _drawn(entry)
    if not layers or not entry.peak:
        return None
    figure = Figure(figsize=(8.4, 4.3), layout="constrained")
    axes = figure.subplots()
    low, high = _span(entry, layers)
    # Where no byte passes the memory the intensity has no end: such layers stand at the right edge.
    on_chip = any(layer.intensity is None for layer in layers)
    edge = high * 10 if on_chip else high
    _roof(axes, entry, low, high, edge * 2)
    _points(axes, layers, slowest(entry), edge)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low / 1.6, edge * 2)
    axes.set_ylim(min(layer.rate for layer in layers) / 4, entry.peak * 2.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: as_count(value) if value >= 1 else f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("multiply–accumulates for each byte that passes the memory" + (" (right: none passes)" * on_chip))
    axes.set_ylabel("multiply–accumulates per second")
    axes.grid(linewidth=0.5)
    axes.set_axisbelow(True)
    _legend(axes, {layer.bound for layer in layers})
    return svg(figure, escape(f"Roofline of {entry.title}", quote=True))


def _drawn(entry: DeviceResult) -> list[DeviceLayer]:
    return [layer for layer in entry.layers if layer.rate > 0]


def _span(entry: DeviceResult, layers: Sequence[DeviceLayer]) -> tuple[float, float]:
    """The range of intensities: of the layers, and of the ridge where the roof bends."""
    inside = [layer.intensity for layer in layers if layer.intensity]
    if entry.peak and entry.peak_bandwidth:
        inside.append(entry.peak / entry.peak_bandwidth)
    return min([*inside, 1.0]), max([*inside, 10.0])


def _roof(axes: Any, entry: DeviceResult, low: float, high: float, end: float) -> None:
    """The roof of the figures, and the one that the fit says is reached. Off the memory, either is flat."""
    x = np.geomspace(low / 2, end, 300)
    #     rate  |        ________ peak          left of the ridge the memory bounds, rate = intensity · bandwidth;
    #           |      /                        right of it the multipliers do
    #           |    /
    #           +------------------ intensity
    roofs: list[tuple[Any, ...]] = [("peak", entry.peak, entry.peak_bandwidth, "solid", 4)]
    if entry.ceilings:
        roofs.append(("fitted", max(entry.ceilings.values()), entry.bandwidth, (0, (4, 3)), -12))
    for label, rate, bandwidth, style, above in roofs:
        y = np.minimum(rate, x * bandwidth) if bandwidth else np.full_like(x, rate)
        if end > high * 3:
            y[x > high] = np.nan
            y[x > high * 3] = rate
        axes.plot(x, y, color=INK, linewidth=1.2, linestyle=style)
        axes.annotate(label, (end, rate), xytext=(-4, above), textcoords="offset points", ha="right")


def _points(axes: Any, layers: Sequence[DeviceLayer], numbered: Sequence[DeviceLayer], edge: float) -> None:
    longest = max(layer.ms for layer in layers)
    # Large ones first, so that small ones lie on top of them and are seen.
    for layer in sorted(layers, key=lambda layer: -layer.ms):
        least = SMALLEST_NUMBERED if layer in numbered else SMALLEST_POINT
        size = max(LARGEST_POINT * layer.ms / longest, least)
        colour = COLOURS.get(layer.bound or "", BEFORE)
        place = layer.intensity or edge, layer.rate
        axes.scatter(*place, s=size, color=colour, alpha=0.6, linewidth=0, zorder=3)
    for number, layer in reversed(list(enumerate(numbered, 1))):
        place = layer.intensity or edge, layer.rate
        axes.annotate(str(number), place, ha="center", va="center_baseline", fontsize=9, weight="bold", zorder=4)


def _legend(axes: Any, bounds: set[str | None]) -> None:
    handles = [
        axes.scatter([], [], s=40, color=colour, alpha=0.75, linewidth=0, label=f"waits for {bound}")
        for bound, colour in COLOURS.items()
        if bound in bounds
    ]
    if handles:
        axes.legend(handles=handles, loc="lower right", frameon=False, fontsize=9)
