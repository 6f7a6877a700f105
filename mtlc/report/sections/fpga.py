"""Lays out the report's sections on FPGAs: latency by policy, what the design takes of the board, a frame over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtlc.report.parts.numbers import as_bytes, as_number
from mtlc.results.fpga import BoardShare, FpgaComparison, PolicyCosts, TaskSwitch

_UNITS = ("linear", "attention", "vector", "gate")
_RESOURCES = ("DSP", "BRAM36", "URAM")
_SIDES = ("before", "after")


def fpga_sections(found: Sequence[FpgaComparison | Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """A section for each accelerator of ``results["fpga"]``: what the template shows, every number already words.

    The entries may be those of a ``results.json`` that was read.
    """
    return [_section(FpgaComparison.read(one, "results.json: fpga")) for one in found or ()]


def _section(one: FpgaComparison) -> dict[str, Any]:
    from mtlc.report.figures.fpga_timeline import timeline_svg

    pairs = list(zip(one.before.policies, one.after.policies, strict=True))
    slowest = max(cost.ms for pair in pairs for cost in pair) or 1.0
    rows = [
        {
            "policy": cost.policy if side == "before" else None, "side": side, "ms": as_number(cost.ms),
            "bar": round(100 * cost.ms / slowest, 1),
            "parts": [as_number(cost.parts_ms[unit]) for unit in _UNITS], "stall": as_number(cost.stall_ms),
            "ddr": as_bytes(cost.ddr_bytes + cost.streamed_bytes), "weights": as_bytes(cost.peak.weight_bytes),
            "queued": str(cost.peak.queue_places),
        }
        for pair in pairs
        for side, cost in zip(_SIDES, pair, strict=True)
    ]  # fmt: skip
    timeline = one.timeline
    return {
        "title": one.accelerator, "kind": one.kind, "board": one.board, "units": _UNITS, "rows": rows,
        "words": _words(one, pairs), "switching": _switching(one.after.switching),
        "resource_names": list(_RESOURCES), "resources": [_resources(after) for _, after in pairs],
        "svg": timeline_svg(timeline),
        "caption": f"After compression, one frame of {timeline.task}, {timeline.policy}. "
        "What lies too close to tell apart is drawn as one.",
    }  # fmt: skip


def _words(one: FpgaComparison, pairs: Sequence[tuple[PolicyCosts, PolicyCosts]]) -> str:
    fitting = [pair for pair in pairs if pair[1].resources.problem is None and pair[1].policy != "dense"]
    how = (
        "A simulation of events with the routing of calibration samples"
        if one.kind == "simulated"
        else "A model with drawn routing"
    )
    words = (
        f"{how}, encoder only; the clock of {one.clock_mhz:g} MHz is assumed, and nothing was run on a board. "
        "The policy dense has a perceptron of the same work in place of the experts, for comparison."
    )
    if not fitting:
        return f"{words} No design with experts fits the board: the times are what a larger one would give."
    before, after = min(fitting, key=lambda pair: pair[1].ms)
    return (
        f"{words} Of the policies for experts that fit the board, {after.policy} is the fastest: "
        f"{as_number(before.ms)} ms before, {as_number(after.ms)} ms after, {as_bytes(before.ddr_bytes)} and "
        f"{as_bytes(after.ddr_bytes)} of weights from DDR."
    )


def _switching(found: TaskSwitch | None) -> str | None:
    if found is None:
        return None
    return (
        f"Another task in every frame costs at most {found.extra_cycles} cycles and {found.extra_bytes} bytes more "
        f"than staying with one ({found.policy}, {found.pairs} pairs)."
    )


def _resources(cost: PolicyCosts) -> dict[str, Any]:
    taken = cost.resources
    cells = [_cell(one) for one in (taken.dsp, taken.bram36, taken.uram)]
    return {"policy": cost.policy, "cells": cells, "problem": taken.problem}


def _cell(one: BoardShare) -> dict[str, Any]:
    total = one.total or 0
    share = 100 * one.used / total if total else 100.0 * bool(one.used)
    return {
        "share": round(min(100.0, share), 1), "over": one.used > total, "words": f"{one.used} of {one.total}",
    }  # fmt: skip
