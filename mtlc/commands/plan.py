"""Reads the options of ``mtlc plan`` and prints what it found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtlc.commands.options import COMPUTE_DEVICE, DEBUG, JOB, JSON, LOG_LEVEL, SET
from mtlc.commands.output import emit, listener
from mtlc.commands.tables import NETWORK, config_text, count, table
from mtlc.errors import BudgetMissed

if TYPE_CHECKING:
    from mtlc.results.plan import Plan, PlannedBudget, PlannedData, PlannedLimit
    from mtlc.results.tasks import LabelledSamples


def text(plan: Plan) -> str:
    """The plan: data, cost, layers, what can be pruned, budget, passes."""
    data, cost, weights = plan.data, plan.cost, plan.weights
    lines = [
        *_warnings(plan),
        f"data      {data.train} train, {data.calibration} calibration, {data.validation} validation samples",
        f"network   {count(cost.macs, 'MACs')}, {count(cost.params)} parameters ({cost.kind})",
    ]
    lines += [f"assumed   {one.line()}" for one in plan.assumed]
    if weights is not None and not weights.exists:
        lines.append(f"weights   {weights.path} is not there yet: mtlc train {plan.job}")
    for task in plan.tasks:
        limit = task.max_drop
        share = "no limit" if limit is None else f"may lose {_limit(limit, task.unit)}"
        lines.append(f"task      {task.name}: {task.loss}, {task.metric}, {share}{_labels(task.samples, data)}")
    lines += [
        f"task      {one.name}: {one.loss}, weight {one.weight:g}, in training only: neither judged nor exported"
        for one in plan.training_only
    ]
    if plan.budget is not None:
        lines.append(f"budget    {_budget(plan.budget)}")
    for index, entry in enumerate(plan.passes, 1):
        lines.append(f"pass {index}    {entry.name}: {config_text(entry.config)}")
        if entry.plan:
            lines.append(f"          {config_text(entry.plan)}")
    lines += [f"advice    {line}" for line in plan.advice]
    lines.append(f"export    {config_text(plan.export)}")
    rows: list[tuple[Any, ...]] = [
        (layer.name or NETWORK, layer.kind, layer.macs, layer.parameters) for layer in plan.layers
    ]
    lines += ["", table(("layer", "operator", "MACs", "parameters"), rows)]
    if plan.units is not None:
        rows = [(unit.name, unit.channels, unit.narrowest, "") for unit in plan.units.prunable]
        rows += [(unit.name, unit.channels, "", unit.why) for unit in plan.units.left_alone]
        lines += ["", table(("channel group", "channels", "narrowest", "left alone because"), rows)]
    if plan.experts is not None:
        rows = [(layer.layer, layer.experts, layer.top_k, layer.keeps) for layer in plan.experts.layers]
        lines += ["", f"tasks that stay: {', '.join(plan.experts.tasks)}"]
        lines += [table(("experts of", "experts", "top k", "keeps at least"), rows)]
    return "\n".join(lines)


def _warnings(plan: Plan) -> list[str]:
    """That the network has not learned its tasks, if so: what a compression keeps of nothing is nothing."""
    from mtlc.results.tasks import unlearned_words

    found = [(one.name, one.metric, one.unit, one.original, one.constant) for one in plan.tasks if not one.learned()]
    if not found:
        return []
    words = unlearned_words("original", found)
    return [f"warning: {words}, on the first validation samples; what is compressed has to be trained first", ""]


def _limit(limit: PlannedLimit, unit: str) -> str:
    drop = f"{limit.value * 100:g}%" if limit.relative else f"{limit.value:g} {unit}".rstrip()
    return drop if limit.confidence is None else f"{drop} at {limit.confidence * 100:g}% confidence"


def _labels(samples: LabelledSamples | None, data: PlannedData) -> str:
    """How many samples have a label of the task, where not all have."""
    if samples is None:
        return ""
    counts = [
        (samples.train, data.train),
        (samples.calibration, data.calibration),
        (samples.validation, data.validation),
    ]
    if all(have == of for have, of in counts):
        return ""
    names = ("train", "calibration", "validation")
    told = (f"{have} of {of} {name}" for (have, of), name in zip(counts, names, strict=True))
    return f", labels of {', '.join(told)} samples"


def _budget(budget: PlannedBudget) -> str:
    if budget.kind == "latency":
        return f"{budget.target:.3g} ms on {budget.device}"
    unit = "MACs" if budget.kind == "macs" else "parameters"
    text = f"{count(budget.target)} of {count(budget.original)} {unit}"
    if budget.met_already:
        return f"{text}: met already"
    if budget.reachable is None:
        return f"{text}: what is in reach shows as the passes run"
    verdict = "within reach if the tasks' limits allow" if budget.reachable else "OUT OF REACH"
    return f"{text}: {verdict} (the pass alone can go to {count(budget.least)})"


@click.command()
@JOB
@SET
@JSON
@DEBUG
@LOG_LEVEL
@COMPUTE_DEVICE
def plan(job: Path, overrides: tuple[str, ...], as_json: bool, log_level: str, device: str | None) -> None:
    """Say what JOB would do, what the network costs and whether the budget can be reached. Nothing is trained.

    The exit code is 3 where the budget is out of reach.
    """
    from mtlc.job.job import load_job
    from mtlc.workflows.plan import out_of_reach, plan_job

    found = plan_job(load_job(job, overrides).on(device), log=listener(log_level)["log"])
    emit(as_json, found, text)
    missed = out_of_reach(found)
    if missed is not None:
        raise BudgetMissed(missed)
