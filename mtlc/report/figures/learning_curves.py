"""Draws how the losses and metrics of a training went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib

from mtlc.report.figures.svg import PAGE, _figure, svg
from mtlc.results.train import LearningCurve

matplotlib.use("Agg")

_COLOURS = ("#2f6fdb", "#c8452d", "#1a8754", "#b0790a", "#7a4fc0", "#8a94a6")


@matplotlib.rc_context(PAGE)
def learning_curve(curve: LearningCurve) -> str:
    """Losses and metrics over epochs, side by side, in % of what each was at the end: tasks have units of their own."""
    losses = [(point.step / curve.steps_per_epoch, point.losses) for point in curve.losses]
    metrics = [(point.step / curve.steps_per_epoch, point.metrics) for point in curve.metrics]
    figure, axes = _figure(8.4, 2.6, columns=2 if metrics else 1)
    drawn = [(losses, "running loss", None), (metrics, "metric, calibration split", "o")][: len(axes)]
    for axis, (points, what, marker) in zip(axes, drawn, strict=True):
        for number, name in enumerate(points[-1][1] if points else ()):
            at, shares = _of_the_end(points, name)
            axis.plot(at, shares, marker=marker, markersize=4, color=_COLOURS[number % len(_COLOURS)], label=name)
        axis.set_title(what, fontsize=10)
        axis.set_xlabel("epochs")
        axis.set_ylabel("% of that at the end")
        axis.grid(linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(length=0)
    axes[0].legend(frameon=False, fontsize=9)
    return svg(figure, "Losses and metrics of the training over its epochs")


def _of_the_end(
    points: Sequence[tuple[float, Mapping[str, float | None]]], name: str
) -> tuple[list[float], list[float]]:
    """Where a task has a number, and that number in % of its last."""
    known = [(at, value) for at, values in points if (value := values.get(name)) is not None and math.isfinite(value)]
    last = known[-1][1] if known and known[-1][1] else 1.0
    return [at for at, _ in known], [100 * value / last for _, value in known]
