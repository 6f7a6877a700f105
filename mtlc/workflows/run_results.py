"""What a run found, as the one dict that ``results.json``, the report and the command line show.

The keys that the report reads are those of `mtlc.report.run_report`; the others are for programs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import mtlc
from mtlc.compress.experts.usage import routed_cost
from mtlc.compress.pass_interface import Budget
from mtlc.compress.pipeline.highlights import highlights
from mtlc.compress.pipeline.step_folder import Finished
from mtlc.errors import UserError, VerificationError
from mtlc.evaluation.constant_predictor import constant_metrics
from mtlc.evaluation.evaluate import Evaluation
from mtlc.evaluation.splits import fetch
from mtlc.hw.cost.count import macs, workload
from mtlc.hw.cost.workload import Workload
from mtlc.hw.measure.in_turns import Setting, measure
from mtlc.hw.measure.layer_profile import profile_layers
from mtlc.hw.measure.memory_and_start import footprint
from mtlc.hw.routing.active_macs import ActiveCost
from mtlc.log import Log
from mtlc.moe.layers import KeptExperts
from mtlc.program.program import Program
from mtlc.report.result_parts import results_latency, results_layers
from mtlc.tasks.task import TaskSpec, delta_m
from mtlc.workflows.device_times import Found, compared
from mtlc.workflows.opened_job import Opened

SCHEMA = 1


def results(
    opened: Opened,
    compressed: Program,
    steps: Sequence[Finished],
    budget: Budget | None,
    evaluations: tuple[Evaluation, Evaluation],
    baselines: Mapping[str, float] | None,
    bundles: tuple[Mapping[str, Any], Mapping[str, Any]],
    latency: Mapping[str, Any] | None,
    devices: Sequence[Found] = (),
) -> dict[str, Any]:
    """Everything of a finished run, JSON values only. Pairs are (original, compressed).

    The tasks are those of the compressed network, and what the original costs to run, it costs to run these; what it holds, it
    holds for all of its own. With a mixture of experts ``active_macs`` are the MACs of a sample
    without places that no expert fills, measured on the calibration split; a MACs budget is judged by them.
    ``missed`` lists a line for the budget and for each task's limit that were not kept.
    """
    job, criteria = opened.job, opened.criteria.restricted(compressed.task_names)
    before, after = evaluations
    old = {task: before.metrics[task] for task in compressed.task_names}
    if baselines is not None:
        baselines = {task: baselines[task] for task in compressed.task_names}
    same = opened.program.restricted(compressed.task_names)
    work = workload(same), workload(compressed)
    named = _named_as_before(work[0], same), _named_as_before(work[1], compressed)
    routed = [routed_cost(program, opened.splits.calibration) for program in (same, compressed)]
    constant = constant_metrics(criteria, opened.splits.calibration, opened.splits.validation)
    tasks = {task.name: _task(task, opened, evaluations, baselines, constant[task.name]) for task in compressed.tasks}
    told = highlights(job.steps, steps)
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "title": f"{job.path.stem}: {', '.join(tasks)}",
        "tasks": tasks,
        "dropped_tasks": [task.name for task in job.tasks if task.name not in tasks],
        "delta_m": {
            "vs_original": _delta(after.metrics, old, criteria.higher_is_better),
            "vs_single_task": _delta(after.metrics, baselines, criteria.higher_is_better),
            "original_vs_single_task": _delta(old, baselines, criteria.higher_is_better),
        },
        "cost": {
            side: {
                "macs": costed.macs,
                "active_macs": None if active is None else active.active_macs,
                "parameters": program.parameters_count(),
                "peak_activation_bytes": costed.peak_activation_bytes,
                "bundle_bytes": bundle["bytes"],
            }
            for side, costed, active, program, bundle in zip(
                ("before", "after"), work, routed, (opened.program, compressed), bundles, strict=True
            )
        },
        "budget": None,
        "latency": None if latency is None else dict(latency),
        "layers": results_layers(*named),
        "devices": compared(devices, named, latency),
        "passes": [
            {
                "name": step.name,
                "config": job.steps[step.index - 1].config.model_dump(mode="json"),
                "report": step.report,
                "cost": step.cost,
                "missed": step.missed,
                "seconds": step.seconds,
            }
            for step in steps
        ],
        "sensitivity": told.sensitivity,
        "experts": told.experts,
        "routing": _routing(routed, len(opened.splits.calibration)),
        "blocked": told.blocked,
        "artifacts": {f"{step.index:02d}-{step.name}": step.artifacts for step in steps if step.artifacts},
        "bundles": {"before": dict(bundles[0]), "after": dict(bundles[1])},
        "versions": {"mtlc": mtlc.__version__, **{name: version(name) for name in ("torch", "onnx", "onnxruntime")}},
        "seed": job.seed,
        "job": job.file.model_dump(mode="json", by_alias=True, exclude_none=True),
    }
    if found["dropped_tasks"]:
        found["cost"]["before"]["macs_of_all_tasks"] = macs(opened.program)
    if budget is not None:
        found["budget"] = _budget(budget, found["cost"], found["latency"], steps)
    found["missed"] = _missed(found, steps)
    return _plain(found)


def _routing(routed: Sequence[ActiveCost | None], samples: int) -> dict[str, Any] | None:
    """Where the tokens of the calibration split go, in the original and in the compressed network."""
    sides = {side: cost.to_dict() for side, cost in zip(("before", "after"), routed, strict=True) if cost is not None}
    return {"kind": "measured", "split": "calibration", "samples": samples, **sides} if sides else None


def _task(
    task: TaskSpec,
    opened: Opened,
    evaluations: tuple[Evaluation, Evaluation],
    baselines: Mapping[str, float] | None,
    constant: float | None,
) -> dict[str, Any]:
    name, better = task.name, opened.criteria.higher_is_better[task.name]
    old, new = (evaluation.metrics[name] for evaluation in evaluations)
    limit = task.max_drop
    return {
        "metric": task.metric,
        "unit": opened.criteria.units[name],
        "kind": opened.criteria.kinds[name],
        "higher_is_better": better,
        "before": old,
        "after": new,
        "limit": None if limit is None else str(limit),
        "bound": None if limit is None else limit.bound(old, better),
        "within": None if limit is None else limit.allows(old, new, better),
        "single_task": None if baselines is None else baselines[name],
        "constant": constant,
        "loss": {side: e.losses[name] for side, e in zip(("before", "after"), evaluations, strict=True)},
        "details": {side: e.details[name] for side, e in zip(("before", "after"), evaluations, strict=True)},
    }


def _delta(
    metrics: Mapping[str, float], base: Mapping[str, float] | None, higher_is_better: Mapping[str, bool]
) -> float | None:
    """Δm in percent; None without a baseline, and where one of its metrics is 0: no relative change of nothing."""
    if base is None or any(value == 0 for value in base.values()):
        return None
    return delta_m(metrics, base, higher_is_better)


def _budget(
    budget: Budget, cost: Mapping[str, Any], latency: Mapping[str, Any] | None, steps: Sequence[Finished]
) -> dict[str, Any]:
    if budget.kind == "latency":
        assert latency is not None
        # The same quantity that the passes aim at and a share is taken of: `mtlc.hw.measure.program_latency.measure_program`.
        key = "cpu_median_ms" if latency["threads"] == 1 else "median_ms"
        original, reached = (float(latency[side][key]) for side in ("before", "after"))
    else:
        key = {"macs": "macs", "params": "parameters"}[budget.kind]
        if key == "macs" and cost["after"]["active_macs"] is not None:
            key = "active_macs"
        whole = cost["before"].get("macs_of_all_tasks") if budget.kind == "macs" else None
        original, reached = float(whole or cost["before"][key]), float(cost["after"][key])
    met = reached <= budget.target
    why = next((step.missed for step in steps if step.missed), None)
    return {
        "kind": budget.kind,
        "device": budget.device,
        "original": original,
        "target": budget.target,
        "reached": reached,
        "met": met,
        "missed": None
        if met
        else why
        or f"[budget] {budget.kind} = {_amount(budget, budget.target)} missed, {_amount(budget, reached)} reached"
        + ("" if steps else "; the job has no [[passes]] to meet it"),
    }


def _amount(budget: Budget, value: float) -> str:
    return f"{value:.3g} ms" if budget.kind == "latency" else f"{value:,.0f}"


def _missed(found: Mapping[str, Any], steps: Sequence[Finished]) -> list[str]:
    lines = []
    budget = found["budget"]
    if budget is not None and not budget["met"]:
        lines.append(budget["missed"])
    else:
        # A pass that missed something of its own, which a later pass cannot have made good.
        lines += [step.missed for step in steps if step.missed and not step.missed.startswith("[budget]")]
    for name, task in found["tasks"].items():
        if task["within"] is False:
            lines.append(
                f"task {name!r}: {task['metric']} is {task['after']:.4g} on validation, its limit is "
                f"{task['bound']:.4g} ({task['before']:.4g} before, max_drop {task['limit']})"
            )
    return lines


def time_bundles(opened: Opened, compressed: Program, bundles: tuple[Path, Path], log: Log) -> dict[str, Any]:
    """The latency of both bundles on one validation sample, measured in turns, their memory and start, and their times by layer, in ms.

    Both run the tasks of the compressed network.
    """
    batch = fetch(opened.splits.validation, [0])
    sample = {name: batch[name].contiguous().numpy() for name in opened.program.inputs}
    log("measuring both networks in turns")
    tasks = compressed.task_names
    labelled = dict(zip(("before", "after"), bundles, strict=True))
    found = measure(labelled, sample, tasks)
    for side, path in labelled.items():
        found["bundles"][side]["memory"] = footprint(Setting(path), sample, tasks)
    before, after = (profile_layers(path, sample, tasks=tasks) for path in bundles)
    names = _wrapped(compressed)
    after = {**after, "layers": _added_up([{**e, "name": names.get(e["name"], e["name"])} for e in after["layers"]])}
    left = macs(compressed)
    ideal = macs(opened.program.restricted(tasks)) / left if left else None
    return results_latency(found, "before", "after", before, after, ideal)


def _wrapped(program: Program) -> dict[str, str]:
    """The names of experts inside their `KeptExperts`, with the names that they had before something wrapped them."""
    wrapped = (name for name, module in program.module.named_modules() if isinstance(module, KeptExperts))
    return {f"{name}.inner": name for name in wrapped}


def _named_as_before(work: Workload, program: Program) -> Workload:
    names = _wrapped(program)
    return replace(work, operators=tuple(replace(o, name=names.get(o.name, o.name)) for o in work.operators))


def _added_up(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The times of layers of one name as one."""
    found: dict[str, dict[str, Any]] = {}
    for layer in layers:
        one = found.setdefault(layer["name"], {**layer, "ms": 0.0})
        one["ms"] += layer["ms"]
    return list(found.values())


def refuse_nan(evaluation: Evaluation, who: str) -> Evaluation:
    """The evaluation, unless a metric in it is no number. A limit compared with NaN would hold or fail by accident."""
    for task, value in evaluation.metrics.items():
        if math.isfinite(value):
            continue
        message = f"task {task!r}: the {who} network's metric on the validation split is {value}"
        if who == "original":
            raise UserError(f"{message}; look for a split without valid labels, or weights that are not trained")
        raise VerificationError(message)
    return evaluation


def _plain(value: Any) -> Any:
    """JSON values: no NaN or infinity (which JSON does not have), no tensors, no numpy scalars."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, torch.Tensor) or hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
