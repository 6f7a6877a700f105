"""Draws a simulation over time, as a picture or as a file for Perfetto (ui.perfetto.dev) and ``chrome://tracing``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure

from mtlc.errors import UserError
from mtlc.files import write_json
from mtlc.hw.fpga.event_simulation import Simulation, Span
from mtlc.hw.fpga.schedule import UNITS
from mtlc.report.figures.svg import AFTER, BAD, BEFORE, PAGE, svg
from mtlc.report.figures.widths import DECODERS, PAPER
from mtlc.results.fpga import Timeline

ROWS = ("ddr", *UNITS, "stall")
_TITLES = {"ddr": "DDR port, weights", "linear": "linear unit", "attention": "attention unit", "vector": "vector unit",
           "gate": "gate and queues", "stall": "waiting for weights"}  # fmt: skip
_COLOURS = {"ddr": BEFORE, "linear": AFTER, "attention": DECODERS, "vector": "#17907a", "gate": "#b8559a", "stall": BAD}


def timeline(simulation: Simulation, first: str | None = None, last: str | None = None) -> str:
    """`timeline_figure` as inline SVG."""
    return timeline_svg(timeline_data(simulation, first, last))


def timeline_svg(data: Timeline) -> str:
    """`timeline_data` as inline SVG."""
    with matplotlib.rc_context(PAGE):
        return svg(_figure(data, PAGE), f"Work of every unit over time, {data.kind}")


def timeline_figure(
    simulation: Simulation, first: str | None = None, last: str | None = None, style: Any = PAPER
) -> Figure:
    """A row for each unit and the port over time in ms, and below it the weights on the chip.

    `first` and `last` name layers ("embed", "block 3") of the first frame to show; all frames if both are None. Raises
    `UserError` for a layer that is not there.
    """
    return _figure(timeline_data(simulation, first, last), style)


def timeline_data(
    simulation: Simulation, first: str | None = None, last: str | None = None, pixels: int = 4000,
    task: str | None = None,
) -> Timeline:  # fmt: skip
    """What `timeline_figure` draws of a simulation, in cycles; what lies within one of `pixels` is one bar.

    `task` is written down where the frames are all of one.
    """
    start, end = _window(simulation, first, last)
    # In cycles. A frame has far more bars than a screen has pixels, and the report holds what is drawn.
    pixel = (end - start) / pixels
    points = [(cycle, size) for cycle, size in simulation.occupancy if start <= cycle <= end]
    # The last change before the window says what was on the chip when it began.
    before = [size for cycle, size in simulation.occupancy if cycle < start][-1:] or [0]
    made = Timeline(
        kind=simulation.kind,
        policy=simulation.policy,
        clock_mhz=simulation.accelerator.clock_mhz,
        start=start,
        end=end,
        bars={unit: _bars(simulation.spans, unit, start, end, pixel) for unit in ROWS},
        layers=[(layer, cycle) for layer, cycle in _layer_ends(simulation) if start < cycle <= end],
        weights=_peaks([(start, before[0]), *points], pixel),
    )
    return made if task is None else made.model_copy(update={"task": task})


def _peaks(points: Iterable[tuple[int, int]], pixel: float) -> list[tuple[int, int]]:
    """Of points that a reader could not tell apart the highest and the last."""
    kept: list[tuple[int, int]] = []
    for cycle, size in points:
        # Two points stand for each pixel: its highest, which a peak must not lose, and its last, where the next begins.
        if len(kept) > 1 and cycle - kept[-2][0] < pixel:
            if size > kept[-2][1]:
                kept[-2] = (kept[-2][0], size)
            kept[-1] = (cycle, size)
        else:
            kept.append((cycle, size))
    return kept


def _figure(data: Timeline, style: Any) -> Figure:
    start, end, per_ms = data.start, data.end, data.clock_mhz * 1e3
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(10.0, 4.4), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        for row, unit in enumerate(ROWS):
            upper.broken_barh(
                [(a / per_ms, (b - a) / per_ms) for a, b in data.bars[unit]], (row - 0.36, 0.72),
                color=_COLOURS[unit], linewidth=0,
            )  # fmt: skip
        for layer, cycle in data.layers:
            for axes in (upper, lower):
                axes.axvline(cycle / per_ms, linewidth=0.5, color=style["grid.color"], zorder=0)
            if len(data.layers) <= 30:
                upper.text(cycle / per_ms, -0.62, layer.removeprefix("block ") + " ", ha="right", fontsize=8)
        upper.set_yticks(range(len(ROWS)), [_TITLES[unit] for unit in ROWS])
        upper.set_ylim(len(ROWS) - 0.5, -1.1)
        x = [*(cycle / per_ms for cycle, _ in data.weights), end / per_ms]
        y = [size for _, size in data.weights]
        y.append(y[-1])
        size_unit, name = (2**20, "MiB") if max(y) >= 2**20 else (2**10, "KiB")
        lower.fill_between(x, [value / size_unit for value in y], step="post", color=BEFORE, alpha=0.6, linewidth=0)
        lower.set_ylim(0)
        lower.set_ylabel(f"weights on\nthe chip, {name}")
        lower.set_xlim(start / per_ms, end / per_ms)
        lower.set_xlabel(f"ms at {data.clock_mhz:g} MHz ({data.kind}; {data.policy}; numbers are blocks)")
        for axes in (upper, lower):
            axes.set_axisbelow(True)
            axes.tick_params(length=0, labelcolor=style["text.color"])
        upper.spines["left"].set_visible(False)
    return figure


def chrome_trace(simulation: Simulation) -> dict[str, Any]:
    """The simulation in Chrome's trace event format: complete events ("X") with times in µs, and the weights on the
    chip.
    """
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
        # A gap narrower than a pixel would not be seen.
        if bars and a - bars[-1][1] < pixel:
            bars[-1] = (bars[-1][0], b)
        else:
            bars.append((a, b))
    return bars
