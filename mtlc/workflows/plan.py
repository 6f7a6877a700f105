"""Says what a run would do, without training or pruning anything: ``mtlc plan``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mtlc.compress.pass_interface import Budget, PassPlan
from mtlc.compress.passes.registry import TO_MEET_A_BUDGET, pass_type
from mtlc.compress.pipeline.identity import Step
from mtlc.errors import MtlcError, UserError, one_line
from mtlc.evaluation.constant_predictor import constant_metrics
from mtlc.evaluation.evaluate import evaluate
from mtlc.hw.cost.count import macs, parameters, workload
from mtlc.job.job import Job
from mtlc.log import Log, silent
from mtlc.program.program import Program
from mtlc.results.plan import Plan, PlannedBudget
from mtlc.workflows.opened_job import Opened, check_devices, open_job, read_baselines

SAMPLES = 32
"""Validation samples that a plan evaluates the original network on."""


def plan_job(job: Job, *, log: Log = silent) -> Plan:
    """The tasks, the original's cost by layer, what the passes would do, the budget in numbers, the passes in full.

    Reads the data and builds the network, so whatever is wrong with them shows here. Raises `UserError`.
    """
    check_devices(job)
    read_baselines(job)
    log("reading the data and building the network")
    opened = open_job(job, weights=job.weights is not None and job.weights.exists())
    program = opened.program
    cost = workload(program)
    budget = job.budget(program)
    known = _learned(opened, log) if job.weights is None or job.weights.exists() else {}
    log("asking the passes what they would do")
    plans = _plans(program, job.steps, budget)
    found: dict[str, Any] = {
        "job": str(job.path),
        "tasks": [
            task.to_dict() | {"unit": opened.criteria.units[task.name]} | known.get(task.name, {})
            for task in program.tasks
        ],
        "data": {name: len(getattr(opened.splits, name)) for name in ("train", "calibration", "validation")},
        "weights": None if job.weights is None else {"path": str(job.weights), "exists": job.weights.exists()},
        "cost": {"kind": "modelled", "macs": cost.macs, "params": parameters(program)},
        "layers": [operator.to_dict() for operator in cost.by_layer().values()],
        "passes": [
            {"name": step.name, "config": step.config.model_dump(mode="json"), "where": step.where}
            | ({"plan": dict(plan.details)} if plan.details else {})
            for step, plan in zip(job.steps, plans, strict=True)
        ],
        "export": job.file.export.model_dump(),
        "report": job.file.report.model_dump(),
    }
    least = _least(job.steps, plans)
    if budget is not None and not any(pass_type(step.name).plans_cost for step in job.steps):
        shown = pass_type(TO_MEET_A_BUDGET)
        plan = shown(shown.Config()).plan(program, program.task_names, budget)
        found["units"], least = plan.units, plan.least
    # Of several passes, the first is to cut the channels that are there now, and the last says which tasks stay.
    for plan in plans:
        if plan.units is not None:
            found.setdefault("units", plan.units)
        if plan.experts is not None:
            found["experts"] = plan.experts
    if budget is not None:
        found["budget"] = _reach(budget, program, least)
    return Plan.model_validate(found)


def _learned(opened: Opened, log: Log) -> dict[str, dict[str, Any]]:
    """By task, the metric of the original network and of the constant predictor, on a few validation samples: whether
    there is anything that a compression could keep.
    """
    log(f"evaluating the original network on at most {SAMPLES} validation samples")
    validation = opened.splits.validation
    found = evaluate(opened.program, opened.criteria, validation, limit=SAMPLES).metrics
    constants = constant_metrics(opened.criteria, opened.splits.calibration, validation, limit=SAMPLES)
    return {
        name: {
            "original": value if math.isfinite(value) else None,
            "constant": constants[name],
            "higher_is_better": opened.criteria.higher_is_better[name],
        }
        for name, value in found.items()
    }


def _plans(program: Program, steps: Sequence[Step], budget: Budget | None) -> list[PassPlan]:
    """What each pass would do."""
    found: list[PassPlan] = []
    tasks: Sequence[str] = program.task_names
    for step in steps:
        try:
            plan = pass_type(step.name)(step.config).plan(program, tasks, budget)
        except MtlcError as error:
            raise type(error)(f"{step.where}: {error}") from None
        except Exception as error:  # a pass may be a package's
            raise UserError(f"{step.where}: its plan raised {one_line(error)}") from error
        found.append(plan)
        tasks = tasks if plan.tasks is None else plan.tasks
    return found


def _least(steps: Sequence[Step], plans: Sequence[PassPlan]) -> Mapping[str, int]:
    """The least cost that the passes can reach, by kind, of those that have a say in it.

    How far passes of different kinds go together nobody knows before the first has run; nor does anybody where one of
    them cannot tell.
    """
    asked = [
        (step.name, plan.least) for step, plan in zip(steps, plans, strict=True) if pass_type(step.name).plans_cost
    ]
    if len({name for name, _ in asked}) != 1:
        return {}
    kinds = set[str].intersection(*(set(least) for _, least in asked))
    return {kind: min(least[kind] for _, least in asked) for kind in kinds}


def _reach(budget: Budget, program: Program, floor: Mapping[str, int]) -> PlannedBudget:
    """The budget in absolute numbers beside the original's cost and the floor."""
    original = {"macs": macs(program), "params": parameters(program)}.get(budget.kind)
    least = floor.get(budget.kind)
    return PlannedBudget(
        kind=budget.kind,
        target=budget.target,
        device=budget.device,
        original=original,
        least=least,
        reachable=None if least is None else least <= budget.target,
        met_already=None if original is None else original <= budget.target,
    )
