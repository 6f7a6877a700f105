"""Draws the runs of a sweep: what each is worth over what it costs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure

from mtlc.report.figures.svg import AFTER, PAGE, svg

# Told apart without red and green; each setting has its own marker, too.
_SERIES = tuple(
    zip((AFTER, "#c9760e", "#17907a", "#b8559a", "#8a6d3b", "#4b9fd0"), ("o", "s", "^", "D", "v", "P"), strict=True)
)
_LEGEND, _NAME = 12, 48


@dataclass(frozen=True)
class SweepPoint:
    """A run: the place of its setting, MACs over the original's, Δm in percent, whether all was kept, and if it is the
    best.
    """

    setting: int
    share: float
    delta_m: float
    kept: bool
    best: bool


def sweep_scatter(points: Sequence[SweepPoint], names: Sequence[str]) -> str:
    """`sweep_figure` as inline SVG."""
    with matplotlib.rc_context(PAGE):
        return svg(sweep_figure(points, names), "Mean relative change of the tasks over cost, for every run")


def sweep_figure(points: Sequence[SweepPoint], names: Sequence[str]) -> Figure:
    """Δm in percent over the share of MACs: a small marker a run, filled where budget and limits were kept; a large
    one for the mean of a setting; a ring around the best run.
    """
    with matplotlib.rc_context(PAGE):
        figure = Figure(figsize=(8.8, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.axhline(0, color=PAGE["text.color"], linewidth=0.8, zorder=1)
        looks = itertools.cycle(_SERIES)
        several = len({point.setting for point in points}) > 1
        for setting, (colour, marker) in zip(sorted({point.setting for point in points}), looks, strict=False):
            own = [point for point in points if point.setting == setting]
            for kept in (True, False):
                of = [point for point in own if point.kept is kept]
                axes.plot(
                    [100 * point.share for point in of], [point.delta_m for point in of], marker, color=colour,
                    markersize=5, markerfacecolor=colour if kept else "none", alpha=0.7, linestyle="none", zorder=3,
                )  # fmt: skip
            name = names[setting]
            axes.plot(
                [100 * fmean(point.share for point in own)], [fmean(point.delta_m for point in own)], marker,
                color=colour, markersize=9, linestyle="none", zorder=4,
                label=name if len(name) <= _NAME else f"{name[: _NAME - 1]}…",
            )  # fmt: skip
        for point in points:
            if point.best:
                axes.plot(
                    [100 * point.share], [point.delta_m], "o", color=PAGE["text.color"], markersize=14,
                    markerfacecolor="none", markeredgewidth=1.6, linestyle="none", zorder=5,
                )  # fmt: skip
        axes.set_axisbelow(True)
        axes.grid(axis="both", linewidth=0.6)
        axes.tick_params(length=0)
        axes.set_xlabel("MACs, % of the original network's")
        axes.set_ylabel("Δm against the original, %")
        if several and len(names) <= _LEGEND:
            figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    return figure
