"""Counts active MACs: what a mixture of experts multiplies for the tokens that its routers really sent.

`mtlc.hw.cost.workload` counts every place of a token's top-k as filled. A place that no expert fills (its expert was
extracted away) costs nothing with mtlc's own experts; another implementation computes it and weights it with 0. Which
places those are is measured: from a `RoutingTrace`, or from tokens observed on a split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtlc.errors import UserError, nearest
from mtlc.hw.cost.count import macs
from mtlc.hw.routing.routing_trace import Frame, RoutingTrace, record
from mtlc.moe.experts import Experts
from mtlc.moe.layers import MoeLayer, moe_layers
from mtlc.program.program import Program

Index = Mapping[str, Tensor]
"""Where one task's tokens go: by layer path the experts of each token, (M, K) int, −1 for a place left empty."""


@dataclass(frozen=True)
class TaskRouting:
    """One task's tokens at one layer: the mean number that each expert gets of a sample, and the MACs for them."""

    tokens_per_expert: tuple[float, ...]
    active_macs: float

    @property
    def busiest(self) -> float:
        """The share of the filled places that the most used expert has; 1/E if all are used alike, 0 without any."""
        return max(self.tokens_per_expert) / (sum(self.tokens_per_expert) or 1)


@dataclass(frozen=True)
class LayerRouting:
    """A layer: `tokens` of a sample with `top_k` places each, of which each filled one costs `macs_per_place`.

    `present` lists the experts that are still there. `full_macs` is what the tokens cost with every place filled.
    """

    layer: str
    experts: int
    present: tuple[int, ...]
    top_k: int
    tokens: int
    macs_per_place: int
    tasks: Mapping[str, TaskRouting]

    @property
    def full_macs(self) -> int:
        return self.tokens * self.top_k * self.macs_per_place


@dataclass(frozen=True)
class ActiveCost:
    """What a sample costs as routed, beside the count with every place filled: each task alone, and all of them
    together.
    """

    layers: tuple[LayerRouting, ...]
    task_macs: Mapping[str, int]
    active_task_macs: Mapping[str, float]
    macs: int
    active_macs: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values. ``macs`` and ``full_macs`` are modelled, everything that depends on the routing is measured."""
        return {
            "macs": self.macs,
            "active_macs": self.active_macs,
            "tasks": {
                task: {"macs": full, "active_macs": self.active_task_macs[task]}
                for task, full in self.task_macs.items()
            },
            "layers": [
                {
                    "layer": layer.layer,
                    "experts": layer.experts,
                    "present": list(layer.present),
                    "top_k": layer.top_k,
                    "tokens": layer.tokens,
                    "macs_per_place": layer.macs_per_place,
                    "full_macs": layer.full_macs,
                    "tasks": {
                        task: {
                            "tokens_per_expert": list(found.tokens_per_expert),
                            "busiest": found.busiest,
                            "active_macs": found.active_macs,
                        }
                        for task, found in layer.tasks.items()
                    },
                }
                for layer in self.layers
            ],
        }


def empty_places(layer: MoeLayer, index: Tensor) -> int:
    """The places of `index` (M, K) that no expert fills and that cost nothing; only mtlc's experts leave any out."""
    if not isinstance(layer.inner, Experts):
        return 0
    return int((_rows(layer, index) < 0).sum())


def saved_by_empty_places(layers: Sequence[MoeLayer], index: Index) -> int:
    """What the empty places of all the tokens of `index` save."""
    return sum(layer.macs_per_place() * empty_places(layer, index[layer.path]) for layer in layers)


def active(program: Program, trace: RoutingTrace) -> ActiveCost:
    """The active MACs of the trace's tasks, means over its frames.

    Raises `UserError` for a network without experts, and for a trace of another network.
    """
    check_trace(program, trace)
    paths = [layer.path for layer in moe_layers(program.module)]
    index = {
        task: {
            path: torch.cat([torch.from_numpy(frame.layers[place]).long() for frame in frames])
            for place, path in enumerate(paths)
        }
        for task, frames in trace.frames.items()
    }
    return active_cost(program, index, {task: len(frames) for task, frames in trace.frames.items()})


def active_cost(program: Program, index: Mapping[str, Index], samples: Mapping[str, int]) -> ActiveCost:
    """The cost of the tasks of `index` for tokens of so many `samples` of each.

    Where the routing does not depend on the task, all tasks' tokens are the same ones and pass the experts once.
    """
    layers = moe_layers(program.module)
    some = program.restricted(index)
    full = {task: macs(program.restricted([task])) for task in index}
    # From the count with every place filled what the empty ones would have cost is taken off, a mean over samples.
    saved = {task: saved_by_empty_places(layers, found) / samples[task] for task, found in index.items()}
    apart = bool(getattr(program.module, "task_conditioned", False))
    # Run together, tasks that share a gate send the same tokens through the experts once: what is saved is saved once.
    together = sum(saved.values()) if apart else next(iter(saved.values()))
    whole = macs(some)
    first = next(iter(index))
    return ActiveCost(
        tuple(
            LayerRouting(
                layer.path,
                layer.count,
                tuple(layer.present),
                index[first][layer.path].shape[1],
                len(index[first][layer.path]) // samples[first],
                layer.macs_per_place(),
                {task: _task(layer, found[layer.path], samples[task]) for task, found in index.items()},
            )
            for layer in layers
        ),
        full,
        {task: full[task] - saved[task] for task in index},
        whole,
        whole - together,
    )


def tokens_per_expert(program: Program, frames: Sequence[Frame]) -> dict[str, list[int]]:
    """The rows of each expert's queue when `frames` run as one batch, by the path of the module that holds the experts.

    What `mtlc.hw.cost.count.onnx_workload` takes. Merged experts share a queue.
    """
    names = {id(module): name for name, module in program.module.named_modules()}
    found = {}
    for place, layer in enumerate(moe_layers(program.module)):
        rows = torch.cat([_rows(layer, torch.from_numpy(frame.layers[place]).long()).flatten() for frame in frames])
        found[names[id(layer.inner)]] = torch.bincount(rows[rows >= 0], minlength=layer.rows).tolist()
    return found


def check_trace(program: Program, trace: RoutingTrace) -> None:
    """Raises `UserError` unless the trace is of this network: its tasks, layers, tokens, places and experts."""
    layers = moe_layers(program.module)
    if not layers:
        raise UserError("[model] the network has no mixture of experts, so no routing trace is of it")
    if not trace.frames or not all(trace.frames.values()):
        raise UserError("the routing trace holds no frame")
    for task in trace.tasks:
        if task not in program.task_names:
            raise UserError(
                f"the routing trace is of another network: this one has no task {task!r}"
                f"{nearest(task, program.task_names)}"
            )
    # One forward of this network shows what its own routes look like: the trace's must have their shapes.
    image = next(iter(program.example.values()))[0]
    (own,) = record(program, [image], trace.tasks[:1]).frames[trace.tasks[0]]
    for task, frames in trace.frames.items():
        for frame in frames:
            _check_frame(task, frame, own, layers)


def _check_frame(task: str, frame: Frame, own: Frame, layers: Sequence[MoeLayer]) -> None:
    other = f"the routing trace is of another network: task {task!r}"
    if len(frame.layers) != len(layers):
        raise UserError(f"{other} has {len(frame.layers)} layers of experts, not {len(layers)}")
    for layer, route, wanted in zip(layers, frame.layers, own.layers, strict=True):
        if route.shape != wanted.shape:
            raise UserError(
                f"{other}, layer {layer.path!r} has places {route.shape}, not {wanted.shape} (tokens, top-k)"
            )
        if route.dtype.kind != "i":
            raise UserError(f"{other}, layer {layer.path!r} names experts by {route.dtype}")
        for wrong in (int(route.min(initial=0)), int(route.max(initial=0))):
            if not -1 <= wrong < layer.count:
                raise UserError(f"{other}, layer {layer.path!r} names expert {wrong}, but there are {layer.count}")


def _task(layer: MoeLayer, index: Tensor, samples: int) -> TaskRouting:
    filled = index.numel() - empty_places(layer, index)
    usage = torch.bincount(index[index >= 0], minlength=layer.count).double() / samples
    return TaskRouting(tuple(usage.tolist()), filled * layer.macs_per_place() / samples)


def _rows(layer: MoeLayer, index: Tensor) -> Tensor:
    """The row of the experts' parameters that each place of `index` uses, −1 for none."""
    return torch.where(index < 0, -1, layer.position.cpu()[index.clamp_min(0)])
