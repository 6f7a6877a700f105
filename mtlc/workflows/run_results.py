"""Puts together what a run found: the results that ``results.json``, the report and the command line show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch

import mtlc
from mtlc.compress.experts.usage import routed_cost
from mtlc.compress.pass_interface import Budget
from mtlc.compress.passes.registry import pass_type
from mtlc.compress.pipeline.highlights import highlights
from mtlc.compress.pipeline.step_folder import Finished
from mtlc.evaluation.evaluate import Evaluation
from mtlc.hw.cost.count import macs, workload
from mtlc.hw.cost.layer_graph import layer_graph
from mtlc.hw.cost.workload import Workload
from mtlc.hw.routing.active_macs import ActiveCost
from mtlc.program.program import Program
from mtlc.report.result_parts import results_layers
from mtlc.results.cost import BudgetResult, Cost, CostPair
from mtlc.results.fpga import FpgaComparison
from mtlc.results.latency import LatencyResult
from mtlc.results.masked_comparison import MaskedComparison
from mtlc.results.quantize import QuantizeResult
from mtlc.results.routing import ExpertsResult, RoutedNetwork, RoutingResult
from mtlc.results.run import (
    SCHEMA,
    BlockedUnit,
    BundlePair,
    BundleResult,
    PassRun,
    RunResults,
    SensitivityResult,
)
from mtlc.results.tasks import DeltaM, DetailPair, LossPair, TaskResult, confidence_doubt
from mtlc.tasks.task import TaskSpec, delta_m
from mtlc.workflows.assumed_operators import assumed_operators
from mtlc.workflows.bundle_latency import names_before_wrapping
from mtlc.workflows.chances import Chances, Draws, delta_m_intervals, task_chances
from mtlc.workflows.device_times import Found, compared
from mtlc.workflows.job_as_run import overrides_of
from mtlc.workflows.opened_job import Opened
from mtlc.workflows.run_budget import judge_budget


@dataclass(frozen=True)
class Work:
    """What a run did. Pairs are (original, compressed).

    `baselines` are the metrics of one network per task, `bundles` what the exports say, `quantization` what the INT8
    bundle is; each None where the job does not ask for it. `constants` are the metrics of the constant predictor.
    """

    compressed: Program
    steps: Sequence[Finished]
    budget: Budget | None
    evaluations: tuple[Evaluation, Evaluation]
    constants: Mapping[str, float | None]
    baselines: Mapping[str, float] | None
    bundles: tuple[Mapping[str, Any], Mapping[str, Any]]
    latency: LatencyResult | None = None
    devices: Sequence[Found] = ()
    fpga: list[FpgaComparison] | None = None
    quantization: QuantizeResult | None = None


def results(opened: Opened, work: Work) -> RunResults:
    """Everything of a finished run.

    The tasks are those of the compressed network, and what the original costs to run, it costs to run these; what it
    holds, it holds for all of its own. With a mixture of experts ``active_macs`` are the MACs of a sample without
    places that no expert fills, measured on the calibration split; a MACs budget is judged by them.
    """
    job, steps, compressed = opened.job, work.steps, work.compressed
    same = opened.program.restricted(compressed.task_names)
    works = workload(same), workload(compressed)
    named = _named_as_before(works[0], same), _named_as_before(works[1], compressed)
    routed = tuple(routed_cost(program, opened.splits.calibration) for program in (same, compressed))
    draws = Draws(work.evaluations, compressed.task_names, job.seed)
    tasks, cost = _tasks(opened, work, draws), _costs(opened, work, works, routed)
    budget = None if work.budget is None else judge_budget(work.budget, cost, work.latency, steps)
    top = highlights(job.steps, steps)
    told = "the report of a pass"
    asked: dict[str, Any] = {} if work.quantization is None else {"quantization": work.quantization}
    if assumed := assumed_operators(*works):
        asked["assumed"] = assumed
    if (graph := layer_graph(*named, list(same.example))) is not None:
        asked["graph"] = graph
    return RunResults(
        schema_version=SCHEMA,
        title=f"{job.path.stem}: {', '.join(tasks)}",
        tasks=tasks,
        dropped_tasks=[task.name for task in job.tasks if task.name not in tasks],
        delta_m=_deltas(opened, work, draws),
        cost=cost,
        budget=budget,
        latency=work.latency,
        layers=results_layers(*named),
        devices=compared(work.devices, named, work.latency),
        passes=[_pass(opened, step) for step in steps],
        sensitivity=None
        if top.sensitivity is None
        else SensitivityResult.read(_plain(top.sensitivity), f"{told}: sensitivity"),
        experts=None if top.experts is None else ExpertsResult.read(_plain(top.experts), f"{told}: experts"),
        routing=_routing(routed, len(opened.splits.calibration)),
        blocked=[BlockedUnit.read(_plain(entry), f"{told}: blocked") for entry in top.blocked],
        artifacts={f"{step.index:02d}-{step.name}": _plain(step.artifacts) for step in steps if step.artifacts},
        bundles=_bundles(work),
        versions={"mtlc": mtlc.__version__, **{name: version(name) for name in ("torch", "onnx", "onnxruntime")}},
        seed=job.seed,
        job=job.file.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"track"}),
        **overrides_of(job),
        missed=_missed(budget, tasks, work),
        fpga=work.fpga,
        **asked,
    )


def _tasks(opened: Opened, work: Work, draws: Draws) -> dict[str, TaskResult]:
    chances = {task.name: task_chances(task, opened, draws) for task in work.compressed.tasks}
    return {
        task.name: _task(task, opened, work, work.constants[task.name], chances[task.name])
        for task in work.compressed.tasks
    }


def _task(task: TaskSpec, opened: Opened, work: Work, constant: float | None, chances: Chances) -> TaskResult:
    name, better, limit = task.name, opened.criteria.higher_is_better[task.name], task.max_drop
    before, after = work.evaluations
    old, new = before.metrics[name], after.metrics[name]
    return TaskResult(
        metric=task.metric,
        unit=opened.criteria.units[name],
        kind=opened.criteria.kinds[name],
        higher_is_better=better,
        before=old,
        after=new,
        limit=None if limit is None else str(limit),
        bound=None if limit is None else limit.bound(old, better),
        within=None if limit is None else limit.allows(old, new, better) and chances.confident,
        single_task=None if work.baselines is None else work.baselines[name],
        constant=constant,
        loss=LossPair(before=before.losses[name], after=after.losses[name]),
        details=DetailPair(before=_plain(before.details[name]), after=_plain(after.details[name])),
        **chances.found,
    )


def _deltas(opened: Opened, work: Work, draws: Draws) -> DeltaM:
    names, better = work.compressed.task_names, opened.criteria.restricted(work.compressed.task_names).higher_is_better
    before, after = work.evaluations
    old = {task: before.metrics[task] for task in names}
    single = None if work.baselines is None else {task: work.baselines[task] for task in names}
    return DeltaM(
        vs_original=_delta(after.metrics, old, better),
        vs_single_task=_delta(after.metrics, single, better),
        original_vs_single_task=_delta(old, single, better),
        **delta_m_intervals(draws, single, better),
    )


def _delta(
    metrics: Mapping[str, float], base: Mapping[str, float] | None, higher_is_better: Mapping[str, bool]
) -> float | None:
    """Δm in percent; None without a baseline, and where one of its metrics is 0: no relative change of nothing."""
    if base is None or any(value == 0 for value in base.values()):
        return None
    return delta_m(metrics, base, higher_is_better)


def _costs(
    opened: Opened, work: Work, works: tuple[Workload, Workload], routed: Sequence[ActiveCost | None]
) -> CostPair:
    programs = opened.program, work.compressed
    # Where tasks went, what all of them cost stands beside what those that are left do.
    dropped = len(work.compressed.tasks) < len(opened.job.tasks)
    of_all: tuple[dict[str, int], dict[str, int]] = ({"macs_of_all_tasks": macs(opened.program)} if dropped else {}), {}
    before, after = (
        Cost(
            macs=costed.macs,
            active_macs=None if active is None else active.active_macs,
            parameters=program.parameters_count(),
            peak_activation_bytes=costed.peak_activation_bytes,
            bundle_bytes=bundle["bytes"],
            **more,
        )
        for costed, active, program, bundle, more in zip(works, routed, programs, work.bundles, of_all, strict=True)
    )
    return CostPair(before=before, after=after)


def _bundles(work: Work) -> BundlePair:
    before, after = (BundleResult.model_validate(bundle) for bundle in work.bundles)
    return BundlePair(before=before, after=after)


def _pass(opened: Opened, step: Finished) -> PassRun:
    config = opened.job.steps[step.index - 1].config
    compared = pass_type(step.name)(config).results(step.report, step.artifacts).compared
    return PassRun(
        name=step.name,
        config=config.model_dump(mode="json"),
        report=_plain(step.report),
        cost=step.cost,
        missed=step.missed,
        compared=None if compared is None else MaskedComparison.read(_plain(compared), f"the report of {step.name}"),
        seconds=step.seconds,
    )


def _routing(routed: Sequence[ActiveCost | None], samples: int) -> RoutingResult | None:
    """Where the tokens of the calibration split go, in the original and in the compressed network."""
    sides = {
        side: RoutedNetwork.model_validate(cost.to_dict())
        for side, cost in zip(("before", "after"), routed, strict=True)
        if cost is not None
    }
    return RoutingResult(kind="measured", split="calibration", samples=samples, **sides) if sides else None


def _missed(budget: BudgetResult | None, tasks: Mapping[str, TaskResult], work: Work) -> list[str]:
    """A line for the budget, and for each limit that the compressed network, or only its INT8 bundle, does not keep."""
    lines = []
    if budget is not None and budget.missed is not None:
        lines.append(budget.missed)
    else:
        # A pass that missed something of its own, which a later pass cannot have made good.
        lines += [step.missed for step in work.steps if step.missed and not step.missed.startswith("[budget]")]
    for name, task in tasks.items():
        if task.within is False:
            lines.append(
                f"task {name!r}: {task.metric} keeps its limit on validation, but {confidence_doubt(task)}: "
                f"{task.after:.4g} ({task.before:.4g} before, max_drop {task.limit})"
                if _keeps(work, name, task)
                else f"task {name!r}: {task.metric} is {task.after:.4g} on validation, its limit is "
                f"{task.bound:.4g} ({task.before:.4g} before, max_drop {task.limit})"
            )
    missed_before = {name for name, task in tasks.items() if task.within is False}
    for name, quantised in ({} if work.quantization is None else work.quantization.tasks).items():
        if name not in missed_before and quantised.missed is not None:
            lines.append(quantised.missed)
    return lines


def _keeps(work: Work, name: str, task: TaskResult) -> bool:
    """Whether a task keeps its limit but for the confidence that this asks for."""
    limit = next(one.max_drop for one in work.compressed.tasks if one.name == name)
    before, after = (evaluation.metrics[name] for evaluation in work.evaluations)
    return limit is not None and limit.allows(before, after, task.higher_is_better)


def _named_as_before(work: Workload, program: Program) -> Workload:
    names = names_before_wrapping(program)
    return replace(work, operators=tuple(replace(o, name=names.get(o.name, o.name)) for o in work.operators))


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
