"""The figures of a slimmable network: what they draw, by its numbers, and that no label covers another."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from testkit.sample_widths import results

from mtlc.report.figures.svg import INK, RULE
from mtlc.report.figures.widths import (
    Series,
    WidthRow,
    as_macs,
    controllability_chart,
    controllability_figure,
    front_series,
    macs_unit,
    pareto_figure,
    pareto_front,
    widths_figure,
    widths_picture,
)

FRONT = Series("front", [(40e6, -1.0), (10e6, -8.0), (20e6, -3.0)], "front")
ROWS = [
    WidthRow("wide", {"a": 1.0, "b": 1.0}, {"depth": 1.0}, 80e6),
    WidthRow("narrow", {"a": 0.25, "b": 0.5}, {"depth": 0.75}, 8e6),
]
CURVES = {"depth": [(1.0, 2.0), (0.0, -4.0)], "edge": [(0.0, -1.0), (0.5, -1.0), (1.0, 0.0)]}


def lines_of(figure: Figure) -> dict[str, np.ndarray]:
    """What was drawn, by its label in the legend."""
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in figure.axes[0].lines}


def legend_of(figure: Figure) -> list[str]:
    legend = figure.axes[0].get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


def test_the_front_is_a_staircase_over_rising_cost() -> None:
    figure = pareto_figure([FRONT])
    assert lines_of(figure)["front"].tolist() == [[10, -8], [20, -3], [40, -1]]
    line = next(line for line in figure.axes[0].lines if line.get_label() == "front")
    assert line.get_drawstyle() == "steps-post"
    assert figure.axes[0].get_xlabel() == "cost of one sample, MMACs"
    assert legend_of(figure) == []


def test_a_front_is_drawn_over_its_baseline_and_that_over_what_is_faint() -> None:
    found = results()
    made = front_series(found["front"], found["measured"])
    assert [(series.label, series.style) for series in made] == [
        ("also measured", "faint"), ("one width for all", "line"), ("best within a budget", "front"),
    ]  # fmt: skip
    assert len(made[1].points) == 4
    assert made[2].points[-1] == (found["cost"]["widest"], 0.0)
    assert front_series([], []) == []


def test_what_is_faint_does_not_stretch_the_axes_and_is_counted() -> None:
    figure = pareto_figure([FRONT, Series("tried", [(30e6, -2.0), (30e6, -90.0), (12e6, -60.0)], "faint")])
    assert "tried (2 more below)" in legend_of(figure)
    assert lines_of(figure)["tried (2 more below)"].tolist() == [[30, -2]]
    assert figure.axes[0].get_ylim()[0] > -10


def test_series_of_other_methods_have_colours_and_markers_of_their_own() -> None:
    figure = pareto_figure([FRONT, *(Series(f"m{i}", [(20e6, -4.0), (30e6, -2.0)], "line") for i in range(4))])
    others = [line for line in figure.axes[0].lines if str(line.get_label()).startswith("m")]
    assert len({line.get_color() for line in others}) == len({line.get_marker() for line in others}) == 4


def test_names_of_one_place_share_a_label() -> None:
    figure = pareto_figure([FRONT], [("60%", 20e6, -3.0), ("default", 20e6, -3.0), ("least", 10e6, -8.0)])
    assert {text.get_text() for text in figure.axes[0].texts} == {"60% / default", "least"}


@pytest.mark.parametrize("count", [4, 12])
def test_labels_cover_neither_each_other_nor_a_marker(count: int) -> None:
    found = results()
    chosen = found["front"][:: max(len(found["front"]) // count, 1)][:count]
    named = [(f"{100 * one['macs'] / found['cost']['widest']:.0f}%", one["macs"], 100 * one["gain"]) for one in chosen]
    figure = pareto_figure(front_series(found["front"], found["measured"]), named)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) == count
    for index, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:index]) == 0
        assert axes.get_window_extent().fully_containsx(box.x0)
        assert axes.get_window_extent().fully_containsx(box.x1)
        markers = axes.transData.transform(lines_of(figure)["best within a budget"])
        assert not any(box.contains(*marker) for marker in markers)


def test_without_anything_there_is_still_a_figure() -> None:
    assert pareto_front([]).startswith("<svg")
    assert widths_picture([], [], []).startswith("<svg")
    assert "one" in pareto_front([], [("one", 5e5, 0.0)])


def test_macs_have_the_unit_of_the_largest() -> None:
    assert [macs_unit(v) for v in (999_999, 1e6, 119.7e6, 1e10)] == [
        (1e3, "kMACs"), (1e6, "MMACs"), (1e6, "MMACs"), (1e9, "GMACs"),
    ]  # fmt: skip
    assert [as_macs(v, 119.7e6) for v in (119.7e6, 7.84e6, 0.25e6)] == ["119.7", "7.8", "0.25"]
    assert as_macs(4_012_300_000, 4.1e9) == "4012"


def test_a_preference_has_a_panel_for_each_task_on_one_scale() -> None:
    figure = controllability_figure(CURVES, {"depth": "range 6.00 points"})
    depth, edge = figure.axes
    assert depth.get_title(loc="left") == "depth\nrange 6.00 points"
    assert edge.get_title(loc="left") == "edge"
    assert depth.get_ylim() == edge.get_ylim() == pytest.approx((-5.2, 3.2))
    curve, equal = (np.asarray(line.get_xydata()) for line in depth.lines[1:])
    assert curve.tolist() == [[0, -4], [1, 2]]
    assert equal.tolist() == [[0.5, -1]]
    assert {text.get_text() for text in depth.texts} == {"−4.00 %", "+2.00 %"}


def test_many_tasks_take_several_rows() -> None:
    figure = controllability_figure({f"task{i}": CURVES["edge"] for i in range(7)})
    assert [axes.get_visible() for axes in figure.axes] == [True] * 7 + [False] * 3
    assert figure.get_size_inches()[1] > 5


def test_the_filled_part_of_a_bar_is_the_width() -> None:
    figure = widths_figure(ROWS, ("a", "b"), ("depth",))
    bars = [patch.get_width() for patch in figure.axes[0].patches]  # filled and frame, column by column
    assert len(bars) == 2 * 2 * 3
    shares = [filled / frame for filled, frame in zip(bars[::2], bars[1::2], strict=True)]
    assert shares == pytest.approx([1, 0.25, 1, 0.5, 1, 0.75])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert [text for text in texts if text in ("80.0", "8.0", "MMACs")] == ["80.0", "8.0", "MMACs"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["wide", "narrow"]


def test_a_width_that_is_not_told_leaves_its_place_empty() -> None:
    figure = widths_figure([WidthRow("x", {"a": 0.5}, {}, 1e6)], ("a", "b"), ("depth",))
    assert len(figure.axes[0].patches) == 2


def test_many_and_long_columns_do_not_run_into_each_other() -> None:
    stages, tasks = [f"encoder stage {i}" for i in range(8)], [f"surface_normals_{i}" for i in range(5)]
    row = WidthRow("60%", dict.fromkeys(stages, 0.125), dict.fromkeys(tasks, 0.125), 1e6)
    figure = widths_figure([row] * 10, stages, tasks)
    figure.draw_without_rendering()
    numbers = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text() == "0.125"]
    frames = [patch.get_window_extent() for patch in figure.axes[0].patches[1::2]]
    assert len(numbers) == len(frames) == 130
    assert all(box.count_overlaps(frames) == 0 for box in numbers)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: pareto_front(front_series(results()["front"]), [("a", 20e6, -3.0)]),
        lambda: controllability_chart(CURVES),
        lambda: widths_picture(ROWS, ("a", "b"), ("depth",)),
    ],
)
def test_inline_figures_take_the_page_s_colours_and_are_the_same_again(draw: object) -> None:
    text = draw()  # type: ignore[operator]
    assert text == draw()  # type: ignore[operator]
    assert "currentColor" in text
    assert INK not in text
    assert RULE not in text
    assert re.search(r'role="img" aria-label="[^"]+"', text)


def test_names_are_text_whatever_they_hold() -> None:
    text = widths_picture([WidthRow("<b>$\\x$", {"a": 0.5}, {"$_{": 0.5}, 1e6)], ("a",), ("$_{",))
    assert "&lt;b&gt;$\\x$" in text
    assert "$_{" in text


@pytest.mark.parametrize(
    "figure",
    [
        lambda: pareto_figure([FRONT], [("60%", 20e6, -3.0)]),
        lambda: controllability_figure(CURVES),
        lambda: widths_figure(ROWS, ("a", "b"), ("depth",)),
    ],
)
def test_a_picture_is_on_white(figure: object) -> None:
    buffer = io.BytesIO()
    figure().savefig(buffer, dpi=72)  # type: ignore[operator]
    pixels = np.asarray(Image.open(buffer).convert("RGB"))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert (pixels.min(2) > 250).mean() > 0.5
    assert pixels.max(2).min() < 100
