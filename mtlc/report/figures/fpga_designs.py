"""Draws a design search: latency over DSP slices."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure

from mtlc.hw.fpga.design_search import Design, DesignSearch
from mtlc.report.figures.svg import AFTER, BEFORE
from mtlc.report.figures.widths import PAPER


def front_figure(found: DesignSearch) -> Figure:
    """Latency over DSP slices: every design that fits, the front in colour, memory blocks written beside it."""
    with matplotlib.rc_context(PAPER):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = figure.subplots()
        for designs, colour, label in ((found.designs, BEFORE, "tried"), (found.front, AFTER, "Pareto front")):
            axes.scatter(
                [one.resources.dsp for one in designs], [one.ms for one in designs], s=22, color=colour, label=label
            )
        cheapest: dict[int, Design] = {}
        for one in found.front:  # by latency: the first of a number of DSPs is the fastest
            cheapest.setdefault(one.resources.dsp, one)
        for one in cheapest.values():
            axes.annotate(
                f"{one.resources.bram36_equivalent}", (one.resources.dsp, one.ms), xytext=(5, 3),
                textcoords="offset points", fontsize=8,
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("DSP slices (numbers: memory in blocks of 36 Kib)")
        kind = found.front[0].kind
        axes.set_ylabel(f"ms a frame ({kind}, {found.front[0].accelerator.clock_mhz:g} MHz assumed)")
        axes.legend(frameon=False)
    return figure
