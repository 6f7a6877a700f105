"""Takes tasks and experts out of a network, in place, and replays that from a checkpoint.

Two kinds of recorded steps: ``{"kind": "tasks", "tasks": [output, …]}`` and ``{"kind": "experts", "layers": {path:
plan}}``. A plan is ``{"kept": [expert, …]}`` or, where experts were merged, ``{"groups": [[expert, …], …]}``, with
``"reroute"``. For experts of another's code it also holds what trials found out about them
(`mtlc.moe.foreign_experts.Cut`); where it does not, they are tried again. Experts go by the number that the router
knows them by, whatever was taken out before. The router keeps all its columns, because a softmax over fewer would
change the scores of the experts that stay (M³ViT's official code loses them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlc.errors import UserError
from mtlc.moe.experts import Experts
from mtlc.moe.foreign_experts import Cut, find_cut, select
from mtlc.moe.layers import KeptExperts, MoeLayer, moe_layers, sharing
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


def keep_experts(module: nn.Module, layers: Mapping[str, Plan]) -> dict[str, Plan]:
    """Carry out the plan of each layer; returns the plans with all that replaying them takes.

    Merged experts have the parameters of the first of their group: see `merge`. Layers that share their experts keep of
    them what any one keeps.

    Raises `UserError` for a layer that is not there, for experts that it does not have, and for experts of another's
    code that cannot be taken out.
    """
    found = moe_layers(module)
    done: dict[str, Plan] = {}
    for path in layers:
        if path not in {layer.path for layer in found}:
            raise UserError(f"layer {path!r}: the network has no mixture of experts there")
    for together in sharing(found):
        if any(layer.path in layers for layer in together):
            done |= _keep(together, layers)
    return done


def groups_of(layer: MoeLayer, plan: Plan | None) -> list[list[int]]:
    """The experts of a layer that will have parameters in common, by `plan`; without one, those that have now."""
    if plan is not None and "groups" in plan:
        return [list(group) for group in plan["groups"]]
    return _by_row(layer, layer.present if plan is None else plan["kept"])


def _by_row(layer: MoeLayer, kept: Sequence[int]) -> list[list[int]]:
    """The experts, each by itself; those that an earlier merge made one stay together."""
    groups: dict[int, list[int]] = {}
    for expert in kept:
        row = int(layer.position[expert]) if expert in layer.present else -1 - expert  # `_check` refuses the latter
        groups.setdefault(row, []).append(expert)
    return list(groups.values())


def _keep(together: Sequence[MoeLayer], layers: Mapping[str, Plan]) -> dict[str, Plan]:
    """Carry out the plans of layers that share their experts."""
    groups = {layer.path: groups_of(layer, layers.get(layer.path)) for layer in together}
    for layer in together:
        _check(layer, groups[layer.path])
        if layers.get(layer.path, {}).get("reroute", False) and not isinstance(layer.router, Router):
            raise UserError(f"layer {layer.path!r}: reroute needs mtlc's Router, not {type(layer.router).__name__}")
    inner = together[0].inner
    rows, positions = _rows(together, groups)
    cut = _cut(together, rows, layers)
    select(inner, torch.tensor(rows), cut)
    done: dict[str, Plan] = {}
    for layer in together:
        position = positions[layer.path]
        empty = "weight" if cut is None else cut.empty
        setattr(layer.module, layer.declaration.experts, KeptExperts(inner, position, empty))
        plan = layers.get(layer.path)
        if plan is not None:
            done[layer.path] = {**plan, **(cut.to_dict() if cut is not None else {})}
        if plan is not None and isinstance(layer.router, Router) and bool((position < 0).any()):
            layer.router.kept = (position >= 0).to(layer.router.weight.device)
            layer.router.reroute = bool(plan.get("reroute", False))
    return done


def _rows(
    together: Sequence[MoeLayer], groups: Mapping[str, Sequence[Sequence[int]]]
) -> tuple[list[int], dict[str, Tensor]]:
    """The present rows of the parameters that are kept, in their new order, and each layer's new positions."""
    first = together[0]
    alike = all(groups[layer.path] == groups[first.path] for layer in together)
    rows = [int(first.position[group[0]]) for group in groups[first.path]]
    if not alike:
        rows = sorted({int(layer.position[group[0]]) for layer in together for group in groups[layer.path]})
    positions = {}
    for layer in together:
        positions[layer.path] = torch.full((layer.count,), -1)
        for number, group in enumerate(groups[layer.path]):
            if not alike and len({int(layer.position[expert]) for expert in group}) > 1:
                raise UserError(
                    f"layers {', '.join(repr(one.path) for one in together)} share their experts: merge them alike"
                )
            row = number if alike else rows.index(int(layer.position[group[0]]))
            positions[layer.path][list(group)] = row
    return rows, positions


def _cut(together: Sequence[MoeLayer], rows: Sequence[int], layers: Mapping[str, Plan]) -> Cut | None:
    """How the experts lose the others: as a plan says, or by trial; None for mtlc's own, which are parameters only."""
    if isinstance(together[0].inner, Experts):
        return None
    if list(rows) == list(range(together[0].rows)):
        return Cut()  # all of them stay, as they are
    recorded = next((plan for layer in together if "empty" in (plan := layers.get(layer.path, {}))), None)
    if recorded is not None:
        return Cut.from_dict(recorded)
    places = max(layer.top_k for layer in together)
    return find_cut(together[0].inner, rows, places, ", ".join(layer.path for layer in together))


def _check(layer: MoeLayer, groups: Sequence[Sequence[int]]) -> None:
    members = [expert for group in groups for expert in group]
    present = set(layer.present)
    if not groups or not all(groups):
        raise UserError(f"layer {layer.path!r}: no expert would be left")
    if len(set(members)) != len(members) or not present.issuperset(members):
        wrong = next((e for e in members if e not in present or members.count(e) > 1), None)
        raise UserError(f"layer {layer.path!r}: expert {wrong!r} is not there, or is named twice")
