"""Says what a run would do, without training or pruning anything: ``mtlc plan``."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel

from mtlc.compress.passes.registry import TO_MEET_A_BUDGET, pass_type
from mtlc.compress.training.recovery import planned_recipe
from mtlc.compress.training.train_config import fine_tuning_of
from mtlc.evaluation.evaluate import evaluate
from mtlc.hw.cost.count import parameters, workload
from mtlc.job.job import Job
from mtlc.log import Log, silent
from mtlc.results.plan import Plan
from mtlc.workflows.assumed_operators import assumed_operators
from mtlc.workflows.chances import labelled_samples
from mtlc.workflows.evaluated import constants_of
from mtlc.workflows.job_as_run import overrides_of
from mtlc.workflows.job_device import on_the_jobs_device
from mtlc.workflows.opened_job import Opened, check_devices, open_job, read_baselines
from mtlc.workflows.planned_passes import amount, beyond, least_cost, pass_plans, planned_budget
from mtlc.workflows.preconditions import Training, check_preconditions, trainings
from mtlc.workflows.pruning_advice import pruning_advice

SAMPLES, FEWEST_SAMPLES = 32, 8
"""Validation samples that a plan evaluates the original network on: so many, or fewer of one of many MACs."""

_EVALUATED, _STEPPED = 4e10, 1.2e10
"""MACs that the evaluation, and the forward of the training step that is tried, may take before they are cut short."""


@on_the_jobs_device
def plan_job(job: Job, *, log: Log = silent) -> Plan:
    """The tasks, the original's cost by layer, what the passes would do, the budget in numbers, the passes in full.

    Reads the data, builds the network and tries both (`mtlc.workflows.preconditions`), so whatever is wrong with them
    shows here. Raises `UserError`.
    """
    check_devices(job)
    read_baselines(job)
    log("reading the data and building the network")
    opened = open_job(job, weights=job.weights is not None and job.weights.exists(), log=log)
    program = opened.program
    cost = workload(program)
    budget = job.budget(program, cost.macs)
    known = _learned(opened, cost.macs, log) if job.weights is None or job.weights.exists() else {}
    log("asking the passes what they would do")
    plans = pass_plans(program, job.steps, budget)
    trained = [] if job.train is None else [Training("[train]", job.train, teacher=False)]
    most = max(2, len(program.tasks), int(_STEPPED // max(1, cost.macs)))
    check_preconditions(opened, [*trainings(job.steps), *trained], log, most)
    found: dict[str, Any] = {
        "job": str(job.path),
        **overrides_of(job),
        "tasks": [
            task.to_dict()
            | {"unit": opened.criteria.units[task.name], "samples": labelled_samples(opened, task.name)}
            | known.get(task.name, {})
            for task in program.tasks
        ],
        "data": {name: len(getattr(opened.splits, name)) for name in ("train", "calibration", "validation")},
        "weights": None if job.weights is None else {"path": str(job.weights), "exists": job.weights.exists()},
        "cost": {"kind": "modelled", "macs": cost.macs, "params": parameters(program)},
        "layers": [operator.to_dict() for operator in cost.by_layer().values()],
        "passes": [
            {"name": step.name, "config": step.config.model_dump(mode="json"), "where": step.where}
            | ({"plan": told} if (told := {**plan.details, **_recipe(step.config, opened)}) else {})
            for step, plan in zip(job.steps, plans, strict=True)
        ],
        "export": job.file.export.model_dump(),
        "report": job.file.report.model_dump(),
    }
    if program.auxiliary:
        found["training_only"] = [
            {
                "name": task.name, "loss": task.loss, "output": task.output_key, "target": task.target_key,
                "weight": task.weight,
            }
            for task in program.auxiliary
        ]  # fmt: skip
    if assumed := assumed_operators(cost):
        found["assumed"] = assumed
    least = least_cost(job.steps, plans)
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
        found["budget"] = reach = planned_budget(budget, program, least, cost.macs)
        share = None if reach.original is None else reach.target / reach.original
        learned = job.weights is None or job.weights.exists()
        advice = pruning_advice(job.steps, share, job.train, len(opened.splits.train), learned)
        found |= {"advice": advice} if advice else {}
    return Plan.model_validate(found)


def _recipe(config: BaseModel, opened: Opened) -> dict[str, Any]:
    """What a pass will fine-tune with where its settings leave that open; the rate of a range test is not known yet."""
    asked, job = fine_tuning_of(config), opened.job
    if asked is None or "auto" not in (asked.epochs, asked.lr):
        return {}
    rate = None if job.train is None else job.train.lr
    return {"finetune": planned_recipe(asked, len(opened.splits.train), rate)}


def out_of_reach(plan: Plan) -> str | None:
    """In a line, why a run of the job cannot meet its budget; None where it may, or where only a run can tell."""
    budget = plan.budget
    if budget is None or budget.met_already or budget.kind == "latency":
        return None
    if not any(pass_type(one.name).plans_cost for one in plan.passes):
        return f"{amount(budget)} is out of reach: the job has no pass that could meet it, such as prune"
    return None if budget.reachable is not False else beyond(budget)


def _learned(opened: Opened, macs: int, log: Log) -> dict[str, dict[str, Any]]:
    """By task, the metric of the original network and of the constant predictor, on a few validation samples: whether
    there is anything that a compression could keep.
    """
    samples = min(SAMPLES, max(FEWEST_SAMPLES, int(_EVALUATED // max(1, macs))))
    log(f"evaluating the original network on at most {samples} validation samples")
    validation = opened.splits.validation
    found = evaluate(opened.program, opened.criteria, validation, limit=samples, need_labels=False).metrics
    constants = constants_of(opened, limit=samples)
    return {
        name: {
            "original": value if math.isfinite(value) else None,
            "constant": constants[name],
            "higher_is_better": opened.criteria.higher_is_better[name],
        }
        for name, value in found.items()
    }
