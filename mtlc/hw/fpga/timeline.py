"""A simulation over time: a picture, and a trace file for Perfetto (ui.perfetto.dev) or ``chrome://tracing``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure

from mtlc.errors import UserError
from mtlc.files import write_json
from mtlc.hw.fpga.schedule import UNITS
from mtlc.hw.fpga.simulator import Simulation, Span
from mtlc.hw.plots import AFTER, BAD, BEFORE, PAGE, svg
from mtlc.hw.width_plots import DECODERS, PAPER

ROWS = ("ddr", *UNITS, "stall")
_TITLES = {"ddr": "DDR port, weights", "linear": "linear unit", "attention": "attention unit", "vector": "vector unit",
           "gate": "gate and queues", "stall": "waiting for weights"}  # fmt: skip
_COLOURS = {"ddr": BEFORE, "linear": AFTER, "attention": DECODERS, "vector": "#17907a", "gate": "#b8559a", "stall": BAD}


def timeline(simulation: Simulation, first: str | None = None, last: str | None = None) -> str:
    """`timeline_figure` as inline SVG."""
    with matplotlib.rc_context(PAGE):
        return svg(timeline_figure(simulation, first, last, PAGE), "Work of every unit over time, modelled")


def timeline_figure(
    simulation: Simulation, first: str | None = None, last: str | None = None, style: Any = PAPER
) -> Figure:
    """A row for each unit and the port over time in ms, and below it the weights on the chip.

    `first` and `last` name layers ("embed", "block 3") of the first frame to show; all frames if both are None. Raises
    `UserError` for a layer that is not there.
    """
    start, end = _window(simulation, first, last)
    hw = simulation.accelerator
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(10.0, 4.4), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        pixel = (end - start) / 4000  # what lies closer than this is drawn as one bar
        for row, unit in enumerate(ROWS):
            bars = _bars(simulation.spans, unit, start, end, pixel)
            upper.broken_barh(
                [(hw.ms(a), hw.ms(b - a)) for a, b in bars], (row - 0.36, 0.72), color=_COLOURS[unit], linewidth=0
            )
        for layer, cycle in _layer_ends(simulation):
            if start < cycle <= end:
                for axes in (upper, lower):
                    axes.axvline(hw.ms(cycle), linewidth=0.5, color=style["grid.color"], zorder=0)
                if _layers_between(simulation, start, end) <= 30:
                    upper.text(hw.ms(cycle), -0.62, layer.removeprefix("block ") + " ", ha="right", fontsize=8)
        upper.set_yticks(range(len(ROWS)), [_TITLES[unit] for unit in ROWS])
        upper.set_ylim(len(ROWS) - 0.5, -1.1)
        points = [(cycle, size) for cycle, size in simulation.occupancy if start <= cycle <= end]
        before = [size for cycle, size in simulation.occupancy if cycle < start][-1:] or [0]
        x = [hw.ms(start), *(hw.ms(cycle) for cycle, _ in points), hw.ms(end)]
        y = [before[0], *(size for _, size in points)]
        y.append(y[-1])
        lower.fill_between(x, [value / 2**20 for value in y], step="post", color=BEFORE, alpha=0.6, linewidth=0)
        lower.set_ylim(0)
        lower.set_ylabel("weights on\nthe chip, MiB")
        lower.set_xlim(hw.ms(start), hw.ms(end))
        lower.set_xlabel(f"ms at {hw.clock_mhz:g} MHz ({simulation.kind}; {simulation.policy}; numbers are blocks)")
        for axes in (upper, lower):
            axes.set_axisbelow(True)
            axes.tick_params(length=0, labelcolor=style["text.color"])
        upper.spines["left"].set_visible(False)
    return figure


def chrome_trace(simulation: Simulation) -> dict[str, Any]:
    """The simulation in Chrome's trace event format: complete events ("X") with times in µs, and the weights on the chip."""
    per_us = simulation.accelerator.clock_mhz
    events: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": 1, "tid": 0,
         "args": {"name": f"{simulation.accelerator.title}, {simulation.policy} ({simulation.kind})"}}
    ]  # fmt: skip
    for tid, unit in enumerate(ROWS, 1):
        events.append({"name": "thread_name", "ph": "M", "pid": 1, "tid": tid, "args": {"name": _TITLES[unit]}})
    for span in simulation.spans:
        about = {"frame": span.frame, "task": simulation.tasks[span.frame], "layer": span.layer, "bytes": span.size}
        events.append(_event(span.name, span.unit, span.start, span.end, per_us, about))
        if span.waited:
            waited = {"frame": span.frame, "layer": span.layer, "for": span.name}
            events.append(_event("stall", "stall", span.start - span.waited, span.start, per_us, waited))
    for cycle, size in simulation.occupancy:
        events.append(
            {"name": "weights on the chip", "ph": "C", "pid": 1, "ts": cycle / per_us, "args": {"bytes": size}}
        )
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"kind": simulation.kind}}


def write_chrome_trace(simulation: Simulation, path: Path) -> None:
    """`chrome_trace` as a JSON file."""
    write_json(path, chrome_trace(simulation))


def _event(name: str, unit: str, start: int, end: int, per_us: float, args: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name, "cat": unit, "ph": "X", "pid": 1, "tid": ROWS.index(unit) + 1, "ts": start / per_us,
        "dur": (end - start) / per_us, "args": args,
    }  # fmt: skip


def _window(simulation: Simulation, first: str | None, last: str | None) -> tuple[int, int]:
    if first is None and last is None:
        return 0, max(1, simulation.cycles)
    ends = [
        (layer, end)
        for (layer, end), cost in zip(_layer_ends(simulation), simulation.layers, strict=True)
        if cost.frame == 0
    ]
    names = [layer for layer, _ in ends]
    for name in (first, last):
        if name is not None and name not in names:
            raise UserError(f"the simulation has no layer {name!r}; known: {', '.join(names)}")
    low = 0 if first is None else names.index(first)
    high = len(names) - 1 if last is None else names.index(last)
    if low > high:
        raise UserError(f"layer {first!r} comes after {last!r}")
    return (ends[low - 1][1] if low else 0), ends[high][1]


def _layer_ends(simulation: Simulation) -> list[tuple[str, int]]:
    found, now = [], 0
    for cost in simulation.layers:
        now += cost.cycles
        found.append((cost.layer, now))
    return found


def _layers_between(simulation: Simulation, start: int, end: int) -> int:
    return sum(start < cycle <= end for _, cycle in _layer_ends(simulation))


def _bars(spans: Iterable[Span], unit: str, start: int, end: int, pixel: float) -> list[tuple[int, int]]:
    """The unit's times within the window, those that a reader could not tell apart joined."""
    bars: list[tuple[int, int]] = []
    for span in spans:
        if unit == "stall":
            a, b = span.start - span.waited, span.start
        elif span.unit == unit:
            a, b = span.start, span.end
        else:
            continue
        a, b = max(a, start), min(b, end)
        if a >= b:
            continue
        if bars and a - bars[-1][1] < pixel:
            bars[-1] = (bars[-1][0], b)
        else:
            bars.append((a, b))
    return bars
