"""Compares two bundles by what is written in them and by what they cost on this machine: ``mtlc compare``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlc.errors import UserError
from mtlc.hw.measure.in_turns import Effort, Setting, measure
from mtlc.hw.measure.memory_and_start import footprint
from mtlc.log import Log, silent
from mtlc.results.compare import Comparison
from mtlc.runtime import Session, open_bundle
from mtlc.runtime.random_inputs import random_inputs
from mtlc.workflows.compared_bundle import ComparedBundle, differences, open_compared
from mtlc.workflows.output_differences import Differences

if TYPE_CHECKING:
    from mtlc.job.job import Job

Arrays = dict[str, np.ndarray]
A, B = "A", "B"


def compare(
    a: Path,
    b: Path,
    *,
    job: Path | Job | None = None,
    batch: int = 1,
    rounds: int | None = None,
    threads: int = 1,
    backend: str = "auto",
    html: Path | None = None,
    wait_quiet: bool = False,
    log: Log = silent,
) -> Comparison:
    """Bundles or folders of runs `a` and `b`, each figure as ``{"A": …, "B": …}``.

    ``cost`` is modelled from the files, ``latency`` and ``memory`` are measured, in turns and on the same random inputs
    where both take the same. Where routing decides what a program computes, the cost is what the run counted, if there
    is one. ``layers`` joins MACs and times by module path. ``agreement`` is, by task, the largest
    difference of the outputs divided by the largest absolute value of A's; its inputs are calibration samples of `job`,
    else random. What cannot be compared is None, and ``notes`` say why. `html` is a page of the same to write. Without
    `rounds` as many are run as `Effort.asked` says; with `wait_quiet` latency is measured when other processes do
    little.

    Raises `UserError` for what is no bundle and no run.
    """
    sides = {A: open_compared(a), B: open_compared(b)}
    first, second = sides[A].manifest, sides[B].manifest
    shared = [task for task in first.tasks if task in second.tasks]
    notes = []
    alike = first.inputs == second.inputs
    if not shared:
        notes.append("no task is in both: each is measured with all its own tasks, and no outputs are compared")
    elif len(shared) < len({**first.tasks, **second.tasks}):
        notes.append(f"costs are those of the tasks that both have: {', '.join(shared)}")
    if not alike:
        notes.append("their inputs differ: each is measured on its own, not in turns, and no outputs are compared")
    tasks = {label: shared or list(side.manifest.tasks) for label, side in sides.items()}
    inputs = {label: random_inputs(side.manifest, batch) for label, side in sides.items()}
    costs = {label: _costs(side, tasks[label]) for label, side in sides.items()}
    for label, cost in costs.items():
        if cost["why"] is not None:
            notes.append(f"{label}: MACs and parameters cannot be counted: {cost['why']}")
    data = [(side.results or {}).get("job", {}).get("data") for side in sides.values()]
    if None not in data and data[0] != data[1]:
        notes.append("the two runs used other data or another split: their metrics do not compare exactly")
    samples, source = (inputs[A], "random") if job is None else (_samples(job, sides[A]), str(job))
    effort = Effort.asked(rounds, wait_quiet, log=log)
    result = Comparison.model_validate(
        {
            "kind": "comparison",
            **{label: side.as_json() for label, side in sides.items()},
            "tasks": _tasks(sides),
            "cost": {
                label: {
                    "kind": "modelled",
                    "macs": cost["macs"],
                    "parameters": cost["parameters"],
                    "bytes": sides[label].bytes,
                }
                for label, cost in costs.items()
            },
            "latency": _latency(sides, inputs, tasks, alike and bool(shared), effort, threads, backend),
            "memory": {
                label: footprint(Setting(side.bundle, backend, threads), inputs[label], tasks[label])
                for label, side in sides.items()
            },
            "layers": _layers(sides, costs, inputs, tasks, threads, backend),
            "agreement": _agreement(sides, samples, shared, threads, backend) if alike and shared else None,
            "agreement_inputs": source if alike and shared else None,
            "differs": differences(sides[A], sides[B]),
            "notes": notes,
        }
    )
    if html is not None:
        from mtlc.report.comparison import write_comparison

        write_comparison(result, html)
    return result


def _costs(side: ComparedBundle, tasks: list[str]) -> dict[str, Any]:
    from mtlc.hw.cost.bundle_costs import bundle_costs

    with open_bundle(side.bundle) as opened:
        found = bundle_costs(opened, tasks)
    if found["macs"] is not None or side.results is None or set(tasks) != set(side.manifest.tasks):
        return found
    # What routing decides is not in the files, but the run counted it on the network itself.
    cost, layers = side.results["cost"]["after"], side.results["layers"]
    return {
        "macs": cost["macs"],
        "parameters": cost["parameters"],
        "why": None,
        "layers": [{"name": one["name"], "macs": one["macs_after"]} for one in layers if one["macs_after"] is not None],
    }


def _samples(job: Path | Job, side: ComparedBundle) -> Arrays:
    from mtlc.evaluation.splits import fetch
    from mtlc.job.job import load_job
    from mtlc.workflows.verify import SAMPLES

    split = load_job(job).load_splits().calibration
    batch = fetch(split, [index % len(split) for index in range(SAMPLES)])
    missing = [one.name for one in side.manifest.inputs if one.name not in batch]
    if missing:
        raise UserError(f"--job {job}: its data have no {missing[0]!r}, which the bundles take")
    return {one.name: batch[one.name].contiguous().numpy() for one in side.manifest.inputs}


def _tasks(sides: Mapping[str, ComparedBundle]) -> dict[str, dict[str, Any]]:
    """By task, both metrics and ``change``: how much better B's is than A's, relative, if both are known and alike."""
    metrics = {label: side.metrics() for label, side in sides.items()}
    found = {}
    for task in dict.fromkeys([*metrics[A], *metrics[B]]):
        old, new = (metrics[label].get(task) for label in (A, B))
        change = None
        if old and new and old["after"] and new["after"] is not None and old["metric"] == new["metric"]:
            sign = 1 if new["higher_is_better"] else -1
            change = sign * (new["after"] - old["after"]) / abs(old["after"])
        found[task] = {A: old, B: new, "change": change}
    return found


def _latency(
    sides: Mapping[str, ComparedBundle],
    inputs: Mapping[str, Arrays],
    tasks: Mapping[str, list[str]],
    together: bool,
    effort: Effort,
    threads: int,
    backend: str,
) -> dict[str, Any]:
    """What `measure` finds for both, in one session of turns if they can be run on the same inputs and tasks."""
    paths = {label: side.bundle for label, side in sides.items()}
    if together:
        found = measure(paths, inputs[A], tasks[A], threads, backend=backend, effort=effort)
        return {**found, "in_turns": True}
    alone = {
        label: measure({label: path}, inputs[label], tasks[label], threads, backend=backend, effort=effort)
        for label, path in paths.items()
    }
    bundles = {label: one["bundles"][label] for label, one in alone.items()}
    doubts = [f"{label}: {line}" for label, one in alone.items() for line in one["doubts"]]
    return {**alone[A], "tasks": dict(tasks), "bundles": bundles, "in_turns": False, "doubts": doubts}


def _layers(
    sides: Mapping[str, ComparedBundle],
    costs: Mapping[str, Mapping[str, Any]],
    inputs: Mapping[str, Arrays],
    tasks: Mapping[str, list[str]],
    threads: int,
    backend: str,
) -> list[dict[str, Any]]:
    """A row for each module path that costs anything: MACs (modelled) and ms (measured) of both sides, or None."""
    from mtlc.hw.measure.layer_profile import profile_layers

    rows: dict[str, dict[str, Any]] = {}
    for label, side in sides.items():
        timed = profile_layers(side.bundle, inputs[label], threads, tasks[label], backend=backend)["layers"]
        for key, layers in (("macs", costs[label]["layers"]), ("ms", timed)):
            for layer in layers:
                row = rows.setdefault(layer["name"], {"name": layer["name"], A: {}, B: {}})
                row[label][key] = layer[key]
    for row in rows.values():
        for label in sides:
            row[label] = {"macs": row[label].get("macs"), "ms": row[label].get("ms")} if row[label] else None
    return [row for row in rows.values() if any(row[label] and any(row[label].values()) for label in sides)]


def _agreement(
    sides: Mapping[str, ComparedBundle], samples: Arrays, tasks: list[str], threads: int, backend: str
) -> dict[str, dict[str, Any]]:
    """By task, what `Differences.summary` says of B's outputs against A's."""
    outputs = {}
    for label, side in sides.items():
        with Session(side.bundle, backend, threads) as session:
            outputs[label] = session.run(samples, tasks)
    found = {}
    for task in tasks:
        differences = Differences()
        differences.add(outputs[B][task], outputs[A][task])
        found[task] = differences.summary()
    return found
