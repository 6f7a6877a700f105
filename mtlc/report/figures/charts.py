"""Draws the report's figures: inline SVG that follows the page's colours, and pictures as data URIs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib

from mtlc.report.figures.svg import AFTER, BAD, BEFORE, INK, PAGE, _figure, _quiet, _short, svg

matplotlib.use("Agg")

import numpy as np
from matplotlib.colors import PowerNorm

from mtlc.report.parts.numbers import as_change
from mtlc.results.run import SensitivityResult

_MOST_USED = 2.5


@matplotlib.rc_context(PAGE)
def task_changes(changes: Sequence[tuple[str, float, float | None, bool | None]]) -> str:
    """Each task's change in percent, negative is worse: (task, change, limit as a negative change, kept)."""
    figure, (axes,) = _figure(8.4, 0.55 + 0.42 * len(changes))
    for row, (_, change, limit, kept) in enumerate(changes):
        axes.barh(row, change, height=0.52, color=BAD if kept is False else AFTER)
        if limit is not None:
            axes.plot([limit, limit], [row - 0.36, row + 0.36], color=BAD, linewidth=2, solid_capstyle="butt")
        # On the other side of zero from a loss, where no limit can stand in its way.
        axes.annotate(
            as_change(change), (max(change, 0.0), row), xytext=(6, 0), textcoords="offset points", va="center"
        )
    values = [0.0, *(c[1] for c in changes), *(c[2] for c in changes if c[2] is not None)]
    span = max(values) - min(values) or 1.0
    axes.set_xlim(min(values) - 0.04 * span, max(values) + 0.16 * span)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(changes)), [change[0] for change in changes])
    axes.invert_yaxis()
    axes.set_xlabel("change of the metric, % (left of zero is worse; red mark: the task's limit)")
    _quiet(axes)
    return svg(figure, "Change of every task's metric with its limit")


@matplotlib.rc_context(PAGE)
def limit_uses(rows: Sequence[tuple[str, float, float, float | None]]) -> str:
    """How much of its limit INT8 uses up by task, 1 is all of it: (task, everything in INT8, after control, the same on
    the validation split). A bar beyond `_MOST_USED` is cut, with its figure at the cut.
    """
    low, high = -_MOST_USED, _MOST_USED
    figure, (axes,) = _figure(8.4, 0.95 + 0.5 * len(rows))
    for place, (_, everything, kept, validation) in enumerate(rows):
        for offset, share, colour in ((-0.19, everything, BEFORE), (0.19, kept, AFTER if kept <= 1 else BAD)):
            # One task far beyond its limit would press all other bars together.
            drawn = min(max(share, low), high)
            axes.barh(place + offset, drawn, height=0.34, color=colour)
            if drawn != share:
                axes.annotate(
                    f"{100 * share:.0f} %".replace("-", "−"), (max(drawn, 0.0), place + offset), xytext=(6, 0),
                    textcoords="offset points", va="center",
                )  # fmt: skip
        if validation is not None:
            axes.plot(min(max(validation, low), high), place + 0.19, "D", color=INK, markersize=6, clip_on=False)
    values = [0.0, 1.0, *(min(max(share, low), high) for row in rows for share in row[1:] if share is not None)]
    span = max(values) - min(values)
    axes.set_xlim(min(values) - 0.04 * span, max(values) + 0.12 * span)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.axvline(1, color=BAD, linewidth=2)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %".replace("-", "−"))
    axes.invert_yaxis()
    axes.set_xlabel(
        "share of the limit that INT8 uses up (grey: everything in INT8; blue: after control;\n"
        "diamond: after control, validation split; red line: the limit)"
    )
    _quiet(axes)
    return svg(figure, "Share of its limit that INT8 uses up, by task")


@matplotlib.rc_context(PAGE)
def sensitivity_maps(found: SensitivityResult) -> str:
    """Units × tasks, one map per ratio: how much each task's loss grows when a unit loses that share of its channels.

    ``growth`` is units × ratios × tasks, relative (0.02 is 2 %); None where it was not measured.
    """
    units, ratios, tasks = found.units, found.ratios, found.tasks
    growth = np.array(
        [[[math.nan if v is None else v for v in at_ratio] for at_ratio in unit] for unit in found.growth],
        float,
    )
    percent = np.ma.masked_invalid(growth * 100)
    # The top percent of the values would otherwise take the whole scale; below zero (a gain) there is no harm to show.
    top = max(float(np.percentile(percent.compressed(), 99)) if percent.count() else 1.0, 1e-3)
    cell = 0.2 if len(units) > 30 else 0.26
    width = 2.4 + len(ratios) * max(1.0, 0.42 * len(tasks)) + 0.9
    figure, axes = _figure(max(width, 5.0), 0.9 + cell * len(units), columns=len(ratios))
    colours = matplotlib.colormaps["YlOrRd"].with_extremes(bad=BEFORE)
    mesh: Any = None
    for index, (axis, ratio) in enumerate(zip(axes, ratios, strict=True)):
        mesh = axis.pcolormesh(
            np.clip(percent[:, index, :], 0, None),
            cmap=colours,
            norm=PowerNorm(0.5, 0, top),
            edgecolors="face",
            linewidth=0.3,
        )
        axis.set_title(f"{100 * ratio:g} % of the channels", fontsize=10)
        axis.set_xticks(np.arange(len(tasks)) + 0.5, tasks, rotation=40, ha="right", rotation_mode="anchor")
        axis.set_yticks(
            np.arange(len(units)) + 0.5, [_short(unit.name) for unit in units] if index == 0 else [""] * len(units)
        )
        axis.invert_yaxis()
        axis.tick_params(length=0, labelsize=9)
        for spine in axis.spines.values():
            spine.set_visible(False)
    bar = figure.colorbar(mesh, ax=list(axes), fraction=0.03, pad=0.015, aspect=30)
    bar.set_label("growth of the task's loss, %")
    bar.outline.set_visible(False)
    return svg(figure, "Growth of every task's loss by pruned unit and ratio")


@matplotlib.rc_context(PAGE)
def latency_bars(
    rows: Sequence[tuple[str, float, float, float, str]], ideal: float | None, label: str = "Latency before and after"
) -> str:
    """Median latency with p10 and p90: (label, median, p10, p90, colour), in ms; `ideal` is drawn as a line."""
    figure, (axes,) = _figure(8.4, 0.75 + 0.45 * len(rows))
    for index, (_, median, low, high, colour) in enumerate(rows):
        axes.barh(index, median, height=0.5, color=colour)
        whiskers = [[max(median - low, 0.0)], [max(high - median, 0.0)]]
        axes.errorbar(median, index, xerr=whiskers, color=INK, capsize=3, linewidth=1)
        axes.annotate(
            f"{median:.3g} ms", (max(high, median), index), xytext=(6, 0), textcoords="offset points", va="center"
        )
    axes.set_xlim(0, 1.18 * max(max(row[1], row[3]) for row in rows))
    if ideal is not None:
        axes.axvline(ideal, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(
        "ms for one call (bar: median; whiskers: p10 to p90" + ("; dashed: if time fell as MACs did)" if ideal else ")")
    )
    _quiet(axes)
    return svg(figure, label)


@matplotlib.rc_context(PAGE)
def layer_times(layers: Sequence[tuple[str, float | None, float | None]]) -> str:
    """Time per layer before and after, in ms, in the order given."""
    figure, (axes,) = _figure(8.4, 0.7 + 0.36 * len(layers))
    for offset, colour, position, label in ((-0.19, BEFORE, 1, "before"), (0.19, AFTER, 2, "after")):
        values = [float(layer[position] or 0.0) for layer in layers]
        axes.barh(np.arange(len(layers)) + offset, values, height=0.36, color=colour, label=label)
    axes.set_yticks(range(len(layers)), [_short(layer[0]) for layer in layers])
    axes.tick_params(axis="y", labelsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    axes.legend(frameon=False, loc="lower right")
    _quiet(axes)
    return svg(figure, "Time of the slowest layers before and after")
