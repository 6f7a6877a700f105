"""``mtlc plan``: what a run would do, without training or pruning anything."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.compress.pagcp.sweep import kept_counts
from mtlc.compress.pass_interface import Budget
from mtlc.compress.passes.extract import ExtractConfig, check_layers, chosen_tasks, floor_of, least_parameters
from mtlc.compress.passes.prune import PruneConfig
from mtlc.compress.pipeline.identity import Step
from mtlc.errors import UserError
from mtlc.hw.cost.count import macs, parameters, workload
from mtlc.job.job import Job
from mtlc.log import Log, silent
from mtlc.moe.layers import moe_layers
from mtlc.program.program import Program
from mtlc.program.surgery import dependency_graph
from mtlc.workflows.opened_job import check_devices, open_job, read_baselines


def plan_job(job: Job, *, log: Log = silent) -> dict[str, Any]:
    """The tasks, the original's cost by layer, what can be pruned, the budget in numbers, and the passes in full.

    Reads the data and builds the network, so whatever is wrong with them shows here. Raises `UserError`.
    """
    check_devices(job)
    read_baselines(job)
    log("reading the data and building the network")
    opened = open_job(job, weights=job.weights is not None and job.weights.exists())
    program = opened.program
    cost = workload(program)
    result: dict[str, Any] = {
        "job": str(job.path),
        "tasks": [task.to_dict() | {"unit": opened.criteria.units[task.name]} for task in program.tasks],
        "data": {name: len(getattr(opened.splits, name)) for name in ("train", "calibration", "validation")},
        "weights": None if job.weights is None else {"path": str(job.weights), "exists": job.weights.exists()},
        "cost": {"kind": "modelled", "macs": cost.macs, "params": parameters(program)},
        "layers": [operator.to_dict() for operator in cost.by_layer().values()],
        "passes": [{"name": s.name, "config": s.config.model_dump(mode="json"), "where": s.where} for s in job.steps],
        "export": job.file.export.model_dump(),
        "report": job.file.report.model_dump(),
    }
    for step in job.steps:
        if isinstance(step.config, ExtractConfig):
            result["experts"] = _experts(program, step, result.get("experts"))
    prunes = [(step.where, step.config) for step in job.steps if isinstance(step.config, PruneConfig)]
    extracts = [(step.where, step.config) for step in job.steps if isinstance(step.config, ExtractConfig)]
    asking = next((where for where, config in extracts if config.by == "budget"), None)
    if asking is not None and job.file.budget is None:
        raise UserError(f'{asking}: by = "budget" needs a [budget]: params, memory or macs')
    if prunes or (job.file.budget is not None and not extracts):
        log("looking for channels that can be pruned")
        try:
            result["units"] = _units(program, prunes[0][1] if prunes else PruneConfig.model_validate({}))
        except UserError as error:
            raise UserError(f"{prunes[0][0]}: {error}" if prunes else str(error)) from None
    if prunes and job.file.budget is None:
        raise UserError(f"{prunes[0][0]}: prune needs a [budget]: macs, params or latency")
    budget = job.budget(program)
    if budget is not None:
        if not extracts:
            least = result["units"]["least"]
        elif prunes:
            least = {}  # how far both go together nobody knows before the first has run
        else:
            least = {"params": least_parameters(program.restricted(result["experts"]["tasks"]), extracts[-1][1])}
        result["budget"] = _reach(budget, program, least)
    return result


def _experts(program: Program, step: Step, earlier: dict[str, Any] | None) -> dict[str, Any]:
    """The layers that an extraction chooses from, and the tasks that it keeps."""
    assert isinstance(step.config, ExtractConfig)
    layers = moe_layers(program.module)
    try:
        check_layers(layers, step.config, type(program.module).__name__)
        tasks = chosen_tasks(program if earlier is None else program.restricted(earlier["tasks"]), step.config)
    except UserError as error:
        raise UserError(f"{step.where}: {error}") from None
    described = [
        {"layer": layer.path, "experts": layer.count, "top_k": layer.top_k, "keeps": floor_of(layer, step.config)}
        for layer in layers
    ]
    return {"tasks": tasks, "layers": described}


def _units(program: Program, config: PruneConfig) -> dict[str, Any]:
    """The prunable channel groups, what is left alone and why, and the cost with every group at its narrowest.

    That cost is a floor: no pruning with this configuration goes below it, and a task's limit usually stops it before.
    """
    module = copy.deepcopy(program.module)
    example = program.example_inputs()
    groups = ChannelGroups(module, example, dependency_graph(module, example), config.ignore)
    narrowest = {
        u.name: min(kept_counts(u.channels, config.rules(), u.multiple, u.width), default=u.channels)
        for u in groups.units
    }
    described = [{"name": u.name, "channels": u.channels, "narrowest": narrowest[u.name]} for u in groups.units]
    left = [{"name": u.name, "channels": u.channels, "why": u.why} for u in groups.left_alone]
    with torch.no_grad():
        groups.prune({u.name: list(range(narrowest[u.name], u.channels)) for u in groups.units})
    least = replace(program, module=module)
    return {"prunable": described, "left_alone": left, "least": {"macs": macs(least), "params": parameters(least)}}


def _reach(budget: Budget, program: Program, floor: dict[str, Any]) -> dict[str, Any]:
    """The budget in absolute numbers beside the original's cost and the floor; `reachable` is None for a latency."""
    original = {"macs": macs(program), "params": parameters(program)}.get(budget.kind)
    least = floor.get(budget.kind)
    return {
        "kind": budget.kind,
        "target": budget.target,
        "device": budget.device,
        "original": original,
        "least": least,
        "reachable": None if least is None else least <= budget.target,
        "met_already": None if original is None else original <= budget.target,
    }
