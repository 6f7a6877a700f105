"""Draws a slimmable network: what its widths cost and are worth, and how far a preference moves each task.

Each is drawn by a function that returns a matplotlib `Figure` (with `PAPER`, its default, on white: ``figure.savefig``
writes it), and by one that returns inline SVG in the colours of the report's page.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.transforms import Bbox

from mtlc.report.figures.svg import AFTER, BEFORE, PAGE, svg
from mtlc.report.parts.numbers import as_change
from mtlc.results.slim import FrontPoint, MeasuredPoint

PAPER: Any = {**PAGE} | {
    key: colour
    for keys, colour in (
        (("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), "#1c2430"),
        (("axes.edgecolor", "grid.color"), "#d9dde3"),
    )
    for key in keys
}
"""The style of a picture on white, where `PAGE` is that of a figure that follows the page."""

# Told apart by readers who see no red or green, and readable on white as on black; each series has its own marker too.
DECODERS = "#c9760e"
_SERIES = ((DECODERS, "s"), ("#17907a", "^"), ("#b8559a", "D"), ("#8a6d3b", "v"), ("#4b9fd0", "P"))
_PER_ROW = 5
_LEAST = 5.7  # inches: the page draws no figure narrower
_ROW, _BAR = 0.34, 0.44  # inches; a bar's share of its column, the rest is for the number
# Where a label may stand beside its point, in points of distance and as directions, the best first.
_REACHES = (9, 16, 26, 38, 52, 68)
_SIDES = ((-0.5, 0.7), (0.0, 1.0), (-1.0, 0.0), (0.5, 0.7), (1.0, 0.0), (0.6, -0.8), (0.0, -1.0))


Style = Literal["front", "line", "points", "faint"]


@dataclass(frozen=True)
class Series:
    """Points (MACs, Δm in percent) of one kind.

    ``front`` is a staircase: the best that a budget allows. ``line`` joins its points, ``points`` does not, and each
    has a colour of its own; ``faint`` is a background that does not stretch the axes.
    """

    label: str
    points: Sequence[tuple[float, float]]
    style: Style = "line"


@dataclass(frozen=True)
class WidthRow:
    """A configuration in a picture of widths: its name, a width by stage, a width by task, MACs."""

    name: str
    encoder: Mapping[str, float]
    decoders: Mapping[str, float]
    macs: float


def macs_unit(largest: float) -> tuple[float, str]:
    """What to divide MACs by where `largest` is the most, and the unit's name."""
    return (1e3, "kMACs") if largest < 1e6 else (1e6, "MMACs") if largest < 1e10 else (1e9, "GMACs")


def as_macs(macs: float, largest: float) -> str:
    """MACs as a number in the unit of `largest`: 119.7."""
    value = macs / macs_unit(largest)[0]
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def front_series(
    front: Sequence[FrontPoint | Mapping[str, Any]], measured: Sequence[MeasuredPoint | Mapping[str, Any]] = ()
) -> list[Series]:
    """The series of a slimmable network's own results: the front, one width for all, and what else was measured.

    The points may be those of a ``slim.json`` that was read.
    """
    others = [MeasuredPoint.read(one, "measured") for one in measured]

    def series(label: str, found: Sequence[FrontPoint | MeasuredPoint], style: Style) -> Series:
        return Series(label, [(one.macs, 100 * one.gain) for one in found if one.gain is not None], style)

    made = [
        series("also measured", [one for one in others if one.kind != "uniform"], "faint"),
        series("one width for all", [one for one in others if one.kind == "uniform"], "line"),
        series("best within a budget", [FrontPoint.read(one, "front") for one in front], "front"),
    ]
    return [one for one in made if one.points]


def pareto_front(series: Sequence[Series], named: Sequence[tuple[str, float, float]] = ()) -> str:
    """`pareto_figure` as inline SVG."""
    with matplotlib.rc_context(PAGE):
        return svg(pareto_figure(series, named, PAGE), "Mean relative change of the tasks over cost")


def pareto_figure(
    series: Sequence[Series], named: Sequence[tuple[str, float, float]] = (), style: Any = PAPER
) -> Figure:
    """Δm in percent over MACs; `named` points (name, MACs, Δm) are ringed and labelled.

    Those of a faint series that lie under all others are left out, and the legend says how many.
    """
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8.8, 4.6), layout="constrained")
        axes = figure.subplots()
        clear = [p for s in series if s.style != "faint" for p in s.points] + [(m, change) for _, m, change in named]
        # The axes are made for what is to be read; a faint background may stick out of them.
        seen = clear or [p for s in series for p in s.points] or [(1e6, 0.0)]
        factor, unit = macs_unit(max(macs for macs, _ in seen))
        lowest, highest = min(change for _, change in seen), max(change for _, change in seen)
        room = 0.06 * (highest - lowest) or 0.5
        colours, markers, lines = (
            itertools.cycle(_SERIES),
            [],
            [np.array([[0.0, 0.0], [1.1 * max(macs for macs, _ in seen) / factor, 0.0]])],
        )
        for one in sorted(series, key=lambda s: ("faint", "line", "points", "front").index(s.style)):
            look = None if one.style in ("front", "faint") else next(colours)
            x, y = _draw(axes, one, factor, lowest - room, look)
            markers += [] if one.style == "faint" else list(zip(x, y, strict=True))
            # The corners of the stairs as they are drawn (steps-post), so that labels keep clear of risers too.
            if one.style == "front":
                lines.append(np.column_stack([np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]]))
            elif one.style == "line":
                lines.append(np.column_stack([x, y]))
        axes.axhline(0, color=style["text.color"], linewidth=0.8, zorder=1)
        rings: dict[tuple[float, float], list[str]] = {}
        for name, macs, change in named:
            rings.setdefault((macs / factor, change), []).append(name)
        if rings:
            axes.plot(*zip(*rings, strict=True), "o", color=style["text.color"], mfc="none", ms=9, mew=1.6, zorder=6)
        axes.set_ylim(lowest - 1.3 * room, highest + 2.2 * room)
        _open(axes, style)
        axes.grid(axis="both", linewidth=0.6)
        axes.set_xlabel(f"cost of one sample, {unit}")
        axes.set_ylabel("Δm against the widest, %")
        if len(series) > 1:
            axes.legend(frameon=False, loc="lower right")
        labels = [(" / ".join(names), x, y) for (x, y), names in rings.items()]
        _place(figure, axes, labels, markers, lines)
    return figure


def controllability_chart(
    tasks: Mapping[str, Sequence[tuple[float, float]]], notes: Mapping[str, str] | None = None
) -> str:
    """`controllability_figure` as inline SVG."""
    with matplotlib.rc_context(PAGE):
        return svg(controllability_figure(tasks, notes, PAGE), "Each task's change as it is preferred more")


def controllability_figure(
    tasks: Mapping[str, Sequence[tuple[float, float]]], notes: Mapping[str, str] | None = None, style: Any = PAPER
) -> Figure:
    """A panel for each task: the change of its metric in percent over its preference, 0 to 1, all on one scale.

    A diamond is the equal preference, 1 over the number of tasks; `notes` stand under the tasks' names.
    """
    columns = min(len(tasks), _PER_ROW)
    rows = math.ceil(len(tasks) / columns)
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(max(1.85 * columns + 0.6, _LEAST), 2.7 * rows + 0.3), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        changes = [change for points in tasks.values() for _, change in points]
        span = max(changes) - min(changes) or 1.0
        for index, (axes, (task, points)) in enumerate(zip(panels, tasks.items(), strict=False)):
            at, change = np.array(sorted(points), float).T
            equal = 1 / len(tasks)
            axes.axhline(0, color=style["text.color"], linewidth=0.8, zorder=1)
            axes.plot(at, change, color=AFTER, linewidth=2, marker="o", markersize=4, zorder=3)
            axes.plot(equal, np.interp(equal, at, change), "D", color=DECODERS, markersize=7, zorder=4)
            for end, side, align in ((0, -1, "left"), (-1, 1, "right")):
                # The higher end's number above it, the lower end's below: so neither lies on the curve between them.
                above = change[end] >= change[-1 - end]
                axes.annotate(
                    as_change(change[end]), (at[end], change[end]), xytext=(5 * side, 7 if above else -7),
                    textcoords="offset points", ha=align, va="bottom" if above else "top", fontsize=9,
                )  # fmt: skip
            note = (notes or {}).get(task)
            axes.set_title(f"{task}\n{note}" if note else task, fontsize=10, loc="left")
            _open(axes, style)
            axes.grid(axis="y", linewidth=0.6)
            axes.set_xlim(-0.14, 1.14)
            axes.set_ylim(min(changes) - 0.2 * span, max(changes) + 0.2 * span)
            axes.set_xticks([0, 0.5, 1], ["0", "½", "1"])
            axes.tick_params(labelbottom=index + columns >= len(tasks))
        for axes in panels[len(tasks) :]:
            axes.set_visible(False)
        figure.supylabel("change of the metric, %", fontsize=10, color=style["text.color"])
        figure.supxlabel("preference for the task (diamond: all tasks alike)", fontsize=10, color=style["text.color"])
    return figure


def widths_picture(rows: Sequence[WidthRow], stages: Sequence[str], tasks: Sequence[str]) -> str:
    """`widths_figure` as inline SVG."""
    with matplotlib.rc_context(PAGE):
        return svg(widths_figure(rows, stages, tasks, PAGE), "Widths of every stage and decoder by configuration")


def widths_figure(rows: Sequence[WidthRow], stages: Sequence[str], tasks: Sequence[str], style: Any = PAPER) -> Figure:
    """A row for each configuration, a bar for each stage and decoder: the filled part is the width."""
    columns = [*((stage, "encoder", AFTER) for stage in stages), *((task, "decoders", DECODERS) for task in tasks)]
    places = [index + (0.5 if kind == "decoders" else 0.0) for index, (_, kind, _) in enumerate(columns)]
    end, largest = (places[-1] if places else 0.0) + 1.75, max((row.macs for row in rows), default=1.0)
    each = min(max(7.4 / end, 0.66), 0.95)
    title = max((len(row.name) for row in rows), default=0)
    # Names in lines of the rows' height: slanted where they are too long to stand side by side.
    longest = max((len(name) for name, _, _ in columns), default=0) * 0.085
    head = 0.8 if longest < each else 0.8 + 0.5 * longest / _ROW
    slant: dict[str, Any] = {} if longest < each else {"rotation": 30, "rotation_mode": "anchor"}
    with matplotlib.rc_context(style):
        figure = Figure(
            figsize=(max(0.3 + 0.085 * title + each * end, _LEAST), _ROW * (len(rows) + head + 1.2)),
            layout="constrained",
        )
        axes = figure.subplots()
        for place, (name, kind, colour) in zip(places, columns, strict=True):
            axes.text(place, -0.8, name, va="baseline", fontsize=9, **slant)
            widths = [(row.encoder if kind == "encoder" else row.decoders).get(name) for row in rows]
            for line, width in enumerate(widths):
                if width is None:
                    continue
                axes.barh(line, _BAR * width, left=place, height=0.5, color=colour)
                axes.barh(line, _BAR, left=place, height=0.5, color="none", edgecolor=BEFORE, linewidth=0.7)
                axes.text(place + _BAR + 0.04, line, f"{width:g}", va="center", fontsize=8)
        for line, row in enumerate(rows):
            axes.text(end, line, as_macs(row.macs, largest), va="center", ha="right", fontsize=9)
        axes.text(end, -0.8, macs_unit(largest)[1], va="baseline", ha="right", fontsize=9)
        for kind, names, start in (("encoder", stages, 0.0), ("decoders", tasks, len(stages) + 0.5)):
            if names:
                axes.text(start, -0.8 - head, kind, va="baseline", fontweight="bold", fontsize=9)
        axes.set_xlim(-0.1, end + 0.05)
        axes.set_ylim(len(rows) - 0.5, -1.5 - head)
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.set_xticks([])
        _open(axes, style)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure


def _draw(
    axes: Any, one: Series, factor: float, lowest: float, look: tuple[str, str] | None
) -> tuple[list[float], list[float]]:
    """Draw a series with its colour and marker; the places of its markers."""
    points = sorted((macs / factor, change) for macs, change in one.points)
    shown = [point for point in points if point[1] >= lowest] if one.style == "faint" else points
    x, y = [point[0] for point in shown], [point[1] for point in shown]
    below = len(points) - len(shown)
    label = f"{one.label} ({below} more below)" if below else one.label
    if one.style == "faint":
        axes.plot(x, y, "o", color=BEFORE, markersize=3.5, alpha=0.45, markeredgewidth=0, label=label, zorder=2)
    elif one.style == "front":
        size = 5 if len(shown) <= 60 else 3
        axes.plot(x, y, "o-", drawstyle="steps-post", color=AFTER, linewidth=2, markersize=size, label=label, zorder=5)
    else:
        assert look is not None
        colour, marker = look
        line: Any = (0, (4, 2)) if one.style == "line" else "none"
        axes.plot(x, y, color=colour, marker=marker, linestyle=line, linewidth=1.4, markersize=6, label=label, zorder=4)
    return x, y


def _open(axes: Any, style: Any) -> None:
    """No ticks; the colours of ticks that are made later, when the style is no longer set."""
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=style["text.color"], grid_color=style["grid.color"])


def _place(
    figure: Figure,
    axes: Any,
    labels: Sequence[tuple[str, float, float]],
    markers: Sequence[tuple[float, float]],
    lines: Sequence[np.ndarray],
) -> None:
    """Put each label (text, x, y) beside its ringed point, where it covers no marker, no line and no other label.

    The upper left is tried first, the empty side of a front; a label further away has a line to its point.
    """
    figure.draw_without_rendering()  # the layout, which positions depend on
    scale = figure.dpi / 72
    places = [*((at, 3.5) for at in markers), *(((x, y), 6.0) for _, x, y in labels)]
    taken = [_around(axes.transData.transform(at), radius * scale) for at, radius in places]
    paths = [Path(axes.transData.transform(line)) for line in lines]
    if axes.get_legend():
        taken.append(axes.get_legend().get_window_extent())
    frame = axes.get_window_extent()
    # From left to right, nearest places first: seven sides at each distance, and the first that covers nothing. If none
    # is free the last one tried is taken.
    for text, x, y in sorted(labels, key=lambda label: label[1]):
        sample = figure.text(0, 0, text, fontsize=9)
        size: Any = np.array(sample.get_window_extent().size)
        point = axes.transData.transform((x, y))
        sample.remove()
        for reach, (dx, dy) in itertools.product(_REACHES, _SIDES):
            # The label's own corner or edge that faces the point is `reach` away from it.
            corner = point + reach * scale * np.array([dx, dy]) - size * (1 - np.sign([dx, dy])) / 2
            box = Bbox.from_bounds(*corner, *size)
            if _is_free(box, frame, taken, paths):
                break
        taken.append(box)
        line = {"arrowstyle": "-", "color": BEFORE, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 5}
        axes.annotate(
            text, (x, y), xytext=(reach * dx, reach * dy), textcoords="offset points", fontsize=9, zorder=7,
            ha=("center", "left", "right")[int(np.sign(dx))], va=("center", "bottom", "top")[int(np.sign(dy))],
            arrowprops=line if reach > 16 else None,
        )  # fmt: skip


def _is_free(box: Bbox, frame: Bbox, taken: Sequence[Bbox], paths: Sequence[Path]) -> bool:
    """Whether a label's box lies inside the frame and covers nothing: no box that is taken, no line."""
    inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
    return inside and not box.count_overlaps(taken) and not any(p.intersects_bbox(box, filled=False) for p in paths)


def _around(point: Any, radius: float) -> Bbox:
    return Bbox.from_bounds(point[0] - radius, point[1] - radius, 2 * radius, 2 * radius)
