"""Sorts the channels of every group, the important ones first, so that the leading ones are the ones to keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtlc.compress.channels.unit import Member, Unit
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import batches
from mtlc.program.modes import all_trainable
from mtlc.program.placement import moved, placed
from mtlc.program.program import Program
from mtlc.program.surgery import tensor_dimensions

Importance = Literal["taylor", "norm"]


def importances(
    program: Program, units: Sequence[Unit], criteria: Criteria, dataset: Any, kind: Importance, samples: int
) -> dict[str, Tensor]:
    """A score (channels,) for every unit, by its name.

    "taylor": the squared first-order change of the tasks' weighted loss if a channel's own weights were zero, averaged
    over batches (Molchanov et al., CVPR 2019, eq. 8). "norm": the squared norm of these weights.
    """
    module, scores = program.module, {unit.name: torch.zeros(unit.channels) for unit in units}
    if kind == "norm":
        for unit in units:
            scores[unit.name] = _per_channel(module, unit, lambda weight: weight.detach().square())
        return scores
    module.eval()
    with placed(module) as device, all_trainable(module):
        try:
            for batch in batches(dataset, 64, samples):
                module.zero_grad(set_to_none=True)
                losses = criteria.losses(program.outputs(batch), moved(batch, device))
                total = torch.stack([task.weight * losses[task.name] for task in program.tasks]).sum()
                if not total.requires_grad:  # a batch without a label
                    continue
                total.backward()
                for unit in units:
                    # The sum of weight × gradient over what makes a channel: the loss's first-order change if all of it
                    # were 0.
                    change = _per_channel(
                        module, unit, lambda w: w.detach() * w.grad if w.grad is not None else 0 * w.detach()
                    )
                    # Squared for each batch: changes of opposite signs must not cancel out over batches.
                    scores[unit.name] += change.square()
        finally:
            module.zero_grad(set_to_none=True)
    return scores


def sort_channels(module: nn.Module, units: Sequence[Unit], scores: Mapping[str, Tensor]) -> None:
    """Permute the channels of every unit, in place, so that scores fall. The network computes what it did before.

    Units whose channels a group norm divides keep their order: which channels share a group is part of the function. So
    do units of layers whose weights are those of other layers too.
    """
    tied = _tied(module)
    for unit in units:
        layers = [module.get_submodule(m.layer) for m in unit.members]
        if any(isinstance(layer, nn.GroupNorm) or not tied.isdisjoint(layer._parameters.values()) for layer in layers):
            continue
        order = torch.argsort(scores[unit.name], descending=True, stable=True).tolist()
        if order == list(range(unit.channels)):
            continue
        for member in unit.members:
            _permute(module.get_submodule(member.layer), member, order)


def _tied(module: nn.Module) -> set[nn.Parameter | None]:
    """The parameters that several layers have."""
    owners = Counter(p for layer in module.modules() for p in set(layer._parameters.values()) if p is not None)
    return {parameter for parameter, count in owners.items() if count > 1}


def _permute(layer: nn.Module, member: Member, order: Sequence[int]) -> None:
    # Channel `order[i]` moves to the place of channel i, in every layer of the unit: makers and readers stay matched.
    targets = [index for slot in member.indices for index in slot]
    sources = [index for channel in order for index in member.indices[channel]]
    for tensor in (*layer._parameters.values(), *layer._buffers.values()):
        if tensor is None or tensor.ndim == 0:
            continue
        rows, columns = tensor_dimensions(layer, tensor)
        dimension = columns if member.side == "in" else rows
        if dimension is None:
            continue
        moved = tensor.data.index_select(dimension, torch.tensor(sources))
        tensor.data.index_copy_(dimension, torch.tensor(targets), moved)


def _per_channel(module: nn.Module, unit: Unit, of: Any) -> Tensor:
    """Sum of a function of the weights that make each channel, over the unit's layers."""
    total = torch.zeros(unit.channels)
    for member in unit.members:
        if member.side == "in":
            continue
        layer = module.get_submodule(member.layer)
        # A channel may be several rows of a layer (a head): each row knows the channel that it counts for.
        rows_of = torch.tensor([index for slot in member.indices for index in slot])
        channels = torch.tensor([channel for channel, slot in enumerate(member.indices) for _ in slot])
        for parameter in layer._parameters.values():
            if parameter is None or not parameter.is_floating_point():
                continue
            rows, _ = tensor_dimensions(layer, parameter)
            values = of(parameter).transpose(0, rows)
            values = values.flatten(1).sum(1) if values.ndim > 1 else values
            total.index_add_(0, channels, values.cpu()[rows_of])
    return total
