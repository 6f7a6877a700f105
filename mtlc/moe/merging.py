"""Merges experts: matches their neurons, then averages their weights.

The hidden neurons of two perceptrons stand in any order, so they are matched first: the permutation that makes input
weights, bias and output weights of the two closest in squared distance, an assignment problem (Kuhn, 1955; for merging
networks Ainsworth et al., "Git Re-Basin", ICLR 2023, section 3.2). An expert that goes joins the kept expert to which
it is then closest, and each group becomes its usage-weighted mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtlc.errors import UserError
from mtlc.moe.experts import Experts
from mtlc.moe.layers import MoeLayer

Parameters = dict[str, Tensor]


def merged(layer: MoeLayer, kept: Sequence[int], usage: Sequence[float]) -> tuple[list[list[int]], Parameters]:
    """Groups of experts, each led by one of `kept`, and the parameters of the groups, in the shapes of the experts'.

    `usage` (E,) are the weights of the means; an expert of usage 0 joins a group and changes nothing in it. Raises
    `UserError` for experts that are not mtlc's two-layer perceptrons.
    """
    experts = layer.inner
    if not isinstance(experts, Experts):
        raise UserError(
            f'layer {layer.path!r}: handle = "merge" matches the neurons of mtlc\'s Experts, '
            f'not of {type(experts).__name__}; use "drop"'
        )
    neurons, position = _neurons(experts), layer.position.tolist()
    groups: dict[int, list[int]] = {expert: [expert] for expert in kept}
    order: dict[int, Tensor] = {}
    for expert in layer.present:
        if expert in groups:
            continue
        found = {leader: _match(neurons[position[leader]], neurons[position[expert]]) for leader in kept}
        leader = min(kept, key=lambda e: found[e][0])
        groups[leader].append(expert)
        order[expert] = found[leader][1]
    return list(groups.values()), _means(experts, groups, order, position, usage)


def _neurons(experts: Experts) -> Tensor:
    """(E, H, 2D + 1): what a neuron reads with, its bias, and what it writes."""
    parts = (experts.fc1.weight, experts.fc1.bias.unsqueeze(-1), experts.fc2.weight.transpose(1, 2))
    return torch.cat([part.detach() for part in parts], -1)


def _match(leader: Tensor, other: Tensor) -> tuple[float, Tensor]:
    """The squared distance of two experts after matching, and the neuron of `other` for each of the leader's."""
    from scipy.optimize import linear_sum_assignment

    distance = torch.cdist(leader.double(), other.double(), compute_mode="donot_use_mm_for_euclid_dist") ** 2
    rows, columns = linear_sum_assignment(distance.cpu().numpy())
    return float(distance[rows, columns].sum()), torch.as_tensor(columns)


def _means(
    experts: Experts,
    groups: Mapping[int, Sequence[int]],
    order: Mapping[int, Tensor],
    position: Sequence[int],
    usage: Sequence[float],
) -> Parameters:
    made: dict[str, list[Tensor]] = {name: [] for name, _ in experts.named_parameters()}
    for group in groups.values():
        weights = [float(usage[expert]) for expert in group]
        if sum(weights) <= 0:
            weights = [1.0] + [0.0] * (len(group) - 1)
        sums: dict[str, Tensor] = {}
        for expert, weight in zip(group, weights, strict=True):
            if weight == 0:
                continue
            for name, value in _permuted(experts, position[expert], order.get(expert)).items():
                share = value if len(group) == 1 else value * (weight / sum(weights))
                sums[name] = sums[name] + share if name in sums else share
        for name, value in sums.items():
            made[name].append(value)
    return {name: torch.stack(values) for name, values in made.items()}


def _permuted(experts: Experts, row: int, order: Tensor | None) -> Parameters:
    """The parameters of one expert with its hidden neurons in this order; the function stays the same."""
    values = {name: parameter.detach()[row] for name, parameter in experts.named_parameters()}
    if order is None:
        return values
    return {
        "fc1.weight": values["fc1.weight"][order],
        "fc1.bias": values["fc1.bias"][order],
        "fc2.weight": values["fc2.weight"][:, order],
        "fc2.bias": values["fc2.bias"],
    }
