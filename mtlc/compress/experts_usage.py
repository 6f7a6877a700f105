"""How a program's tasks use its experts, and what a routed network costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mtlc.compress.passes import Context
from mtlc.data import batches
from mtlc.evaluation import Criteria, Evaluation, evaluate
from mtlc.hw.workload import macs
from mtlc.moe.experts import Experts
from mtlc.moe.layers import Routed, moe_layers, observing
from mtlc.program import Program
from mtlc.tasks import TaskSpec


def evaluate_tasks(
    program: Program, criteria: Criteria, split: Any, batch_size: int, limit: int | None = None
) -> Evaluation:
    """`evaluate` of the tasks of `criteria`, which may be fewer than the program's. The program is in eval mode."""
    names = [task.name for task in criteria.tasks]
    return evaluate(lambda batch: program.outputs(batch, names), criteria, split, batch_size, limit)


def observe(program: Program, split: Any, batch_size: int, limit: int | None = None) -> dict[str, Routed]:
    """Where each task's tokens go on a split: ``{task: Routed}``.

    In a network whose routing does not depend on the task all tokens are every task's. Raises `UserError` for a router that gives NaN.
    """
    layers = moe_layers(program.module)
    apart = bool(getattr(program.module, "task_conditioned", False))
    runs = [(task,) for task in program.task_names] if apart else [program.task_names]
    found: dict[str, Routed] = {}
    program.module.eval()
    for tasks in runs:
        with torch.inference_mode(), observing(layers) as routed:
            for batch in batches(split, batch_size, limit):
                program.outputs(batch, tasks)
        found |= dict.fromkeys(tasks, routed)
    return found


def empty_places(program: Program, routed: Mapping[str, Routed], samples: int) -> dict[str, float]:
    """Places of a sample's tokens that no expert fills, by layer and over all tasks; only mtlc's experts leave any out."""
    distinct = {id(one): one for one in routed.values()}.values()
    found = {}
    for layer in moe_layers(program.module):
        if isinstance(layer.inner, Experts):
            gone = [e for e, row in enumerate(layer.position.tolist()) if row < 0]
            empty = sum(one.empty(layer.path) + float(one.places(layer.path)[gone].sum()) for one in distinct)
            found[layer.path] = empty / samples
    return found


def active_macs(program: Program, split: Any, batch_size: int = 64, limit: int | None = None) -> float | None:
    """Multiply–accumulates of one sample without the places that stay empty, the mean over a split: measured routing.

    None for a network without a mixture of experts.
    """
    if not moe_layers(program.module):
        return None
    samples = len(split) if limit is None else min(limit, len(split))
    return macs(program) - saved_macs(program, observe(program, split, batch_size, limit), samples)


def saved_macs(program: Program, routed: Mapping[str, Routed], samples: int) -> float:
    """What the empty places save, in MACs of one sample."""
    per_place = {layer.path: layer.macs_per_place() for layer in moe_layers(program.module)}
    return sum(per_place[path] * empty for path, empty in empty_places(program, routed, samples).items())


def broken_limits(context: Context, tasks: Sequence[TaskSpec], before: Evaluation, after: Evaluation) -> dict[str, str]:
    """The tasks whose `max_drop` is not kept, with a line that says by how much."""
    lines = {}
    for task in tasks:
        old, new = before.metrics[task.name], after.metrics[task.name]
        if task.max_drop is not None and not task.max_drop.allows(
            old, new, context.criteria.higher_is_better[task.name]
        ):
            lines[task.name] = (
                f"task {task.name!r}: {task.metric} {old:.4g} → {new:.4g} on the calibration split is past "
                f"max_drop = {task.max_drop}"
            )
    return lines
