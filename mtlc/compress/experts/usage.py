"""Measures how a program's tasks use its experts, and counts what a routed network costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlc.compress.pass_interface import Context
from mtlc.evaluation.bootstrap import keeps_limit
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import Evaluation, evaluate
from mtlc.evaluation.splits import batches
from mtlc.hw.routing.active_macs import ActiveCost, active_cost, saved_by_empty_places
from mtlc.moe.layers import MoeLayer, Routed, moe_layers, observing
from mtlc.program.placement import placed
from mtlc.program.program import Program
from mtlc.tasks.task import TaskSpec


def evaluate_tasks(
    program: Program, criteria: Criteria, split: Any, batch_size: int, limit: int | None = None
) -> Evaluation:
    """`evaluate` of the tasks of `criteria`, which may be fewer than the program's. The program is in eval mode."""
    names = [task.name for task in criteria.tasks]
    with placed(program.module):
        return evaluate(lambda batch: program.outputs(batch, names), criteria, split, batch_size, limit)


def observe(program: Program, split: Any, batch_size: int, limit: int | None = None) -> dict[str, Routed]:
    """Where each task's tokens go on a split: ``{task: Routed}``.

    In a network whose routing does not depend on the task all tokens are every task's. Raises `UserError` for a router
    that gives NaN.
    """
    layers = moe_layers(program.module)
    apart = bool(getattr(program.module, "task_conditioned", False))
    runs = [(task,) for task in program.task_names] if apart else [program.task_names]
    found: dict[str, Routed] = {}
    program.module.eval()
    for tasks in runs:
        with placed(program.module), torch.inference_mode(), observing(layers) as routed:
            for batch in batches(split, batch_size, limit):
                program.outputs(batch, tasks)
        found |= dict.fromkeys(tasks, routed)
    return found


def saved_macs(program: Program, routed: Mapping[str, Routed], samples: int) -> float:
    """What the places that no expert fills save of a sample, over all tasks, in MACs."""
    layers = moe_layers(program.module)
    distinct = {id(one): one for one in routed.values()}.values()
    return sum(saved_by_empty_places(layers, _index(layers, one)) for one in distinct) / samples


def routed_cost(program: Program, split: Any, batch_size: int = 64, limit: int | None = None) -> ActiveCost | None:
    """What a sample costs as routed, the mean over a split: measured routing. None without a mixture of experts."""
    layers = moe_layers(program.module)
    if not layers:
        return None
    samples = len(split) if limit is None else min(limit, len(split))
    routed = observe(program, split, batch_size, limit)
    index = {task: _index(layers, one) for task, one in routed.items()}
    return active_cost(program, index, dict.fromkeys(index, samples))


def _index(layers: Sequence[MoeLayer], routed: Routed) -> dict[str, Tensor]:
    return {layer.path: routed.index(layer.path) for layer in layers}


def broken_limits(context: Context, tasks: Sequence[TaskSpec], before: Evaluation, after: Evaluation) -> dict[str, str]:
    """The tasks whose `max_drop` is not kept, with a line that says by how much."""
    lines = {}
    for task in tasks:
        old, new = before.metrics[task.name], after.metrics[task.name]
        if not keeps_limit(task, before, after, context.criteria.higher_is_better[task.name], context.seed):
            lines[task.name] = (
                f"task {task.name!r}: {task.metric} {old:.4g} → {new:.4g} on the calibration split is past "
                f"max_drop = {task.max_drop}"
            )
    return lines
