"""Measures the bundles of a run on this machine: latency in turns, memory and start, and the times of their layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtlc.evaluation.splits import fetch
from mtlc.hw.cost.count import macs
from mtlc.hw.measure.in_turns import Effort, Setting, measure
from mtlc.hw.measure.layer_profile import profile_layers
from mtlc.hw.measure.memory_and_start import footprint
from mtlc.log import Log
from mtlc.moe.layers import KeptExperts
from mtlc.program.program import Program
from mtlc.report.result_parts import results_latency
from mtlc.results.latency import LatencyResult
from mtlc.workflows.opened_job import Opened


def time_bundles(
    opened: Opened, compressed: Program, bundles: tuple[Path, Path], log: Log, wait_quiet: bool = False
) -> LatencyResult:
    """The latency of both bundles on one validation sample, measured in turns, their memory and start, and their times
    by layer, in ms. Both run the tasks of the compressed network. With `wait_quiet` they are measured when other
    processes do little.
    """
    batch = fetch(opened.splits.validation, [0])
    sample = {name: batch[name].contiguous().numpy() for name in opened.program.inputs}
    log("measuring both networks in turns")
    tasks = compressed.task_names
    labelled = dict(zip(("before", "after"), bundles, strict=True))
    found = measure(labelled, sample, tasks, effort=Effort.asked(None, wait_quiet, log=log))
    for side, path in labelled.items():
        found["bundles"][side]["memory"] = footprint(Setting(path), sample, tasks)
    before, after = (profile_layers(path, sample, tasks=tasks) for path in bundles)
    names = names_before_wrapping(compressed)
    after = {**after, "layers": _added_up([{**e, "name": names.get(e["name"], e["name"])} for e in after["layers"]])}
    left = macs(compressed)
    ideal = macs(opened.program.restricted(tasks)) / left if left else None
    return results_latency(found, "before", "after", before, after, ideal)


def names_before_wrapping(program: Program) -> dict[str, str]:
    """The names of experts inside their `KeptExperts`, with the names that they had before something wrapped them."""
    wrapped = (name for name, module in program.module.named_modules() if isinstance(module, KeptExperts))
    return {f"{name}.inner": name for name in wrapped}


def _added_up(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The times of layers of one name as one."""
    found: dict[str, dict[str, Any]] = {}
    for layer in layers:
        one = found.setdefault(layer["name"], {**layer, "ms": 0.0})
        one["ms"] += layer["ms"]
    return list(found.values())
