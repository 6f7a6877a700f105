"""Takes tasks and experts out of a network, in place, and replays that from a checkpoint.

Two kinds of recorded steps: ``{"kind": "tasks", "tasks": [output, …]}`` and ``{"kind": "experts", "layers": {path:
plan}}``. A plan is ``{"kept": [expert, …]}`` or, where experts were merged, ``{"groups": [[expert, …], …]}``, with
``"reroute"``. Experts go by the number that the router knows them by, whatever was taken out before. The router keeps
all its columns, because a softmax over fewer would change the scores of the experts that stay (M³ViT's official code
loses them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlc.errors import UserError
from mtlc.moe.layers import KeptExperts, MoeLayer, moe_layers
from mtlc.moe.routing import Router

Plan = Mapping[str, Any]
KINDS = ("tasks", "experts")


def replay(module: nn.Module, step: Mapping[str, Any]) -> None:
    """Apply a recorded step of `KINDS`. Weights of merged experts are then to be loaded: a step holds none.

    Raises `UserError` for a step that is damaged or of another network.
    """
    try:
        if step["kind"] == "tasks":
            keep_tasks(module, step["tasks"])
        else:
            keep_experts(module, step["layers"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"the checkpoint's surgery {step['kind']!r} is damaged, or of another network: {what}"
        ) from error


def keep_tasks(module: nn.Module, tasks: Sequence[str]) -> None:
    """Have the network drop the gates and heads of all tasks but these, which it names as it does its outputs."""
    if not hasattr(module, "keep_tasks"):
        raise UserError(f"[model] {type(module).__name__} has no method keep_tasks(tasks), which the checkpoint needs")
    module.keep_tasks(list(tasks))  # type: ignore[operator]


def keep_experts(module: nn.Module, layers: Mapping[str, Plan]) -> None:
    """Carry out the plan of each layer. Merged experts have the parameters of the first of their group: see `merge`.

    Raises `UserError` for a layer that is not there, and for experts that it does not have.
    """
    found = {layer.path: layer for layer in moe_layers(module)}
    for path, plan in layers.items():
        if path not in found:
            raise UserError(f"layer {path!r}: the network has no mixture of experts there")
        groups = plan["groups"] if "groups" in plan else _by_row(found[path], plan["kept"])
        _keep(found[path], groups, bool(plan.get("reroute", False)))


def _by_row(layer: MoeLayer, kept: Sequence[int]) -> list[list[int]]:
    """The experts, each by itself; those that an earlier merge made one stay together."""
    groups: dict[int, list[int]] = {}
    for expert in kept:
        row = int(layer.position[expert]) if expert in layer.present else -1 - expert  # `_check` refuses the latter
        groups.setdefault(row, []).append(expert)
    return list(groups.values())


def _keep(layer: MoeLayer, groups: Sequence[Sequence[int]], reroute: bool) -> None:
    _check(layer, groups)
    position, old, inner = torch.full((layer.count,), -1), layer.position, layer.inner
    for row, group in enumerate(groups):
        position[list(group)] = row
    _select_rows(inner, old[[group[0] for group in groups]])
    setattr(layer.module, layer.declaration.experts, KeptExperts(inner, position))
    if isinstance(layer.router, Router) and bool((position < 0).any()):
        layer.router.kept = (position >= 0).to(layer.router.weight.device)
        layer.router.reroute = reroute
    elif reroute and not isinstance(layer.router, Router):
        raise UserError(f"layer {layer.path!r}: reroute needs mtlc's Router, not {type(layer.router).__name__}")


def _check(layer: MoeLayer, groups: Sequence[Sequence[int]]) -> None:
    members = [expert for group in groups for expert in group]
    present = set(layer.present)
    if not groups or not all(groups):
        raise UserError(f"layer {layer.path!r}: no expert would be left")
    if len(set(members)) != len(members) or not present.issuperset(members):
        wrong = next((e for e in members if e not in present or members.count(e) > 1), None)
        raise UserError(f"layer {layer.path!r}: expert {wrong!r} is not there, or is named twice")


def _select_rows(experts: nn.Module, rows: Tensor) -> None:
    """Keep these rows of every parameter, and correct the counts that the module keeps of its experts."""
    before = len(next(experts.parameters()))
    for module in experts.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            kept = parameter.detach()[rows.to(parameter.device)].clone()
            setattr(module, name, nn.Parameter(kept, parameter.requires_grad))
        for name, value in list(vars(module).items()):
            if "expert" in name and type(value) is int and value == before:  # num_experts, and the like
                setattr(module, name, len(rows))
