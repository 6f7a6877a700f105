"""Prunes by one score of every channel, as torch-pruning's pruners do: magnitude, Taylor, group norm, random.

The scores are torch-pruning's own, with its defaults. Which channels depend on each other, which may go and how they
are taken out is the same for every method here and for the prune pass. The ratio that meets the MACs is found by
`benchmarks.pruning.equal_ratio`, in one go: no method is stopped between two layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor

from benchmarks.pruning.equal_ratio import above_threshold, allowed_counts, kept_within, same_share
from mtlc.compress.channels.channel_costs import ChannelCosts
from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.compress.channels.unit import Unit
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits, batches
from mtlc.program.program import HistoryEntry, Program
from mtlc.program.surgery import dependency_graph

Scores = dict[str, Tensor]
"""By unit, a score of each of its channels, (channels,): the higher, the longer it stays."""
GRADIENT_SAMPLES = 512
"""Samples of the calibration split that a Taylor score looks at."""


@dataclass(frozen=True)
class Source:
    """What a score may be worked out from: the network with its units, the data, the losses, a seed."""

    program: Program
    groups: ChannelGroups
    splits: Splits
    criteria: Criteria
    seed: int


@dataclass(frozen=True)
class SimplePruner:
    """A score, and what it is compared with: the scores of the same unit, or of all units (`everywhere`)."""

    scores: Callable[[Source], Scores]
    everywhere: bool


def scored_by(source: Source, importance: Any) -> Scores:
    """torch-pruning's `importance` of every channel of every unit."""
    graph = dependency_graph(source.groups.module, source.program.example_inputs())
    return {unit.name: _score(graph, source.groups, unit, importance) for unit in source.groups.units}


def _score(graph: Any, groups: ChannelGroups, unit: Unit, importance: Any) -> Tensor:
    maker = unit.producers[0]
    if unit.kind != "channels" or maker.of(range(unit.channels)) != list(range(unit.channels)):
        raise UserError(f"unit {unit.name!r}: torch-pruning has no scores for {unit.kind} of this kind; ignore it")
    layer = groups.module.get_submodule(maker.layer)
    cut = graph.get_pruner_of_module(layer).prune_out_channels
    score = importance(graph.get_pruning_group(layer, cut, list(range(unit.channels))))
    return torch.as_tensor(score).nan_to_num(0.0)


def magnitude(p: int) -> Callable[[Source], Scores]:
    """The norm of degree `p` of a channel's weights in all layers, relative to its unit's mean."""
    return lambda source: scored_by(source, tp.importance.GroupMagnitudeImportance(p=p))


def taylor(source: Source) -> Scores:
    """|weight · gradient of the training loss|: what the sum of all tasks loses without the channel, to first order."""
    _gradients(source, {task.name: task.weight for task in source.program.tasks})
    scores = scored_by(source, tp.importance.GroupTaylorImportance())
    source.program.module.zero_grad()
    return scores


def taylor_by_task(source: Source) -> Scores:
    """The same for each task's loss alone; the scores of a task are shares of all that it loses, and are summed.

    So a task with small gradients has as much of a say as the others.
    """
    total = {unit.name: torch.zeros(unit.channels) for unit in source.groups.units}
    for task in source.program.tasks:
        _gradients(source, {task.name: 1.0})
        found = scored_by(source, tp.importance.GroupTaylorImportance(normalizer=None))
        whole = sum(float(score.sum()) for score in found.values())
        for name, score in found.items():
            total[name] += score / max(whole, 1e-12)
    source.program.module.zero_grad()
    return {name: score / score.mean().clamp_min(1e-12) for name, score in total.items()}  # as torch-pruning normalises


def at_random(source: Source) -> Scores:
    """Numbers that follow from the seed."""
    generator = torch.Generator().manual_seed(source.seed)
    return {unit.name: torch.rand(unit.channels, generator=generator) for unit in source.groups.units}


SIMPLE: Mapping[str, SimplePruner] = {
    "uniform": SimplePruner(magnitude(1), everywhere=False),
    "magnitude-global": SimplePruner(magnitude(1), everywhere=True),
    "taylor": SimplePruner(taylor, everywhere=True),
    "taylor-per-task": SimplePruner(taylor_by_task, everywhere=True),
    "group-norm": SimplePruner(magnitude(2), everywhere=True),
    "random": SimplePruner(at_random, everywhere=False),
}


def prune_simply(
    name: str, program: Program, splits: Splits, criteria: Criteria, target: float, seed: int, round_to: int
) -> Program:
    """A copy of `program` with at most `target` MACs, cut by the method `name` of `SIMPLE` in one stage.

    Raises `UserError` where no allowed network has as few MACs.
    """
    method, cut = SIMPLE[name], program.clone()
    example = cut.example_inputs()
    groups = ChannelGroups(cut.module, example)
    scores = method.scores(Source(cut, groups, splits, criteria, seed))
    wanted = above_threshold(scores) if method.everywhere else same_share(groups.units)
    costs = ChannelCosts(cut, {unit.name: unit for unit in groups.units})
    tasks = {task.output_key for task in program.tasks}

    def place(unit: str) -> str:
        return ".".join("*" if part in tasks else part for part in unit.split("."))

    kept = kept_within(costs, allowed_counts(groups.units, round_to), wanted, target, place)
    # In the order of the channels, so that equal scores leave the later one.
    removed = {u: s.argsort(stable=True)[: len(s) - kept[u]].sort().values.tolist() for u, s in scores.items()}
    with torch.no_grad():
        steps = groups.prune(removed)
    entry = HistoryEntry(name, {"target": target, "round_to": round_to, "seed": seed}, steps, {"kept": kept})
    return program.after(cut.module, entry)


def start_anew(program: Program, seed: int) -> None:
    """Draw all weights of a network anew, in place, each layer as torch does for one of its present width.

    Raises `UserError` for parameters that belong to no layer that can do so.
    """
    torch.manual_seed(seed)
    drawn: set[int] = set()
    for layer in program.module.modules():
        reset = getattr(layer, "reset_parameters", None)
        if reset is not None:
            reset()
            drawn |= {id(parameter) for parameter in layer.parameters()}
    for name, parameter in program.module.named_parameters():
        if id(parameter) not in drawn:
            raise UserError(f"parameter {name!r}: its layer cannot be started anew (it has no reset_parameters)")


def _gradients(source: Source, weights: Mapping[str, float]) -> None:
    """Leave the gradient of the weighted losses on the calibration split in the network's parameters, 0 where none."""
    module, data = source.program.module.eval(), source.splits.calibration
    module.zero_grad()
    for batch in batches(data, 64, GRADIENT_SAMPLES):
        losses = source.criteria.losses(source.program.outputs(batch), batch)
        count = len(next(iter(batch.values())))
        torch.stack([weight * losses[task] * count for task, weight in weights.items()]).sum().backward()
    for parameter in module.parameters():
        if parameter.grad is None:  # another task's decoder
            parameter.grad = torch.zeros_like(parameter)
