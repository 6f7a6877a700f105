"""Draws what runs paid over what they cost: a point for each, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib

from mtlc.report.figures.svg import AFTER, BEFORE, INK, PAGE, _figure, svg
from mtlc.report.figures.widths import macs_unit

Point = tuple[str, float, float, tuple[float, float] | None]
"""Label, cost, Δm in percent, and the ends of its interval."""


@matplotlib.rc_context(PAGE)
def runs_scatter(macs: Sequence[Point], times: Sequence[Point]) -> str | None:
    """Δm over MACs and, where there are any, over ms; None without a point."""
    if not macs and not times:
        return None
    factor, unit = macs_unit(max((point[1] for point in macs), default=1e6))
    scaled = [(label, cost / factor, change, ends) for label, cost, change, ends in macs]
    panels = [(points, title) for points, title in (
        (scaled, f"cost of one sample, {unit} (modelled)"), (list(times), "time of a call, ms (measured)")
    ) if points]  # fmt: skip
    figure, found = _figure(8.4, 3.8, columns=len(panels))
    for axes in found[1:]:
        axes.sharey(found[0])
    for axes, (points, title) in zip(found, panels, strict=True):
        _panel(axes, points)
        axes.set_xlabel(title)
    found[0].set_ylabel("Δm, % (higher is better)")
    return svg(figure, "Mean change of the tasks over cost, by run")


def _panel(axes: Any, points: Sequence[Point]) -> None:
    for _, cost, change, ends in points:
        if ends is not None:
            axes.plot([cost, cost], ends, color=BEFORE, linewidth=2.5, solid_capstyle="butt", zorder=2)
        axes.plot(cost, change, "o", color=AFTER, markersize=8, zorder=3)
    together: dict[tuple[float, float], list[str]] = {}
    for label, cost, change, _ in points:
        together.setdefault((cost, change), []).append(label)
    for place, labels in together.items():
        axes.annotate(", ".join(labels), place, xytext=(8, 0), textcoords="offset points", va="center", zorder=4)
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    largest = max(cost for _, cost, _, _ in points)
    axes.set_xlim(0, 1.22 * largest if largest > 0 else 1)
    axes.margins(y=0.12)
    axes.grid(linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
