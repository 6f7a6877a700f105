"""Finds the experts that a budget can spare: those whose loss hurts the tasks least, measured one by one.

The harm of an expert is how much each task's loss grows on the calibration split when that expert is dropped on top of
those that went before, as a share of the task's loss with all of them. The search drops the experts of the least
harm to the task that suffers most, per cost saved, an eighth of the candidates at a time, and measures anew. Layers
that share their experts lose them together: these count once, under the path of the first layer. Dropped experts are
masked, so nothing is rebuilt; an expert that a task sends no token to cannot harm it, and is not run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mtlc.compress.experts.usage import evaluate_tasks, observe, saved_macs
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import Evaluation
from mtlc.hw.cost.count import macs
from mtlc.log import Log, silent, tracked
from mtlc.moe.layers import MoeLayer, Routed, dropping, moe_layers, rows_left, sharing
from mtlc.program.program import Program

Kept = dict[str, list[int]]
Expert = tuple[str, int]
_STEP = 1 / 8


@dataclass
class ExpertSearch:
    """The search on one program; `kind` is what the budget counts, "macs" or "params".

    Routing and limits are measured on `samples` of the split, the harm of single experts on `trial_samples`.
    """

    program: Program
    criteria: Criteria
    split: Any
    kind: str
    samples: int
    trial_samples: int
    batch_size: int
    log: Log = silent
    removed: list[dict[str, Any]] = field(default_factory=list)
    """What went, in order: layer, expert, growth by task. The artifact of the pass."""

    def __post_init__(self) -> None:
        self.program.module.eval()
        self.layers = {layer.path: layer for layer in moe_layers(self.program.module)}
        self.together = {layers[0].path: layers for layers in sharing(self.layers.values())}
        self.everything: Kept = {path: layer.present for path, layer in self.layers.items()}
        self.original = self.evaluate(self.everything, limit=self.trial_samples).losses
        self.fixed = float(macs(self.program)) if self.kind == "macs" else float(self.program.parameters_count())

    def evaluate(self, kept: Kept, criteria: Criteria | None = None, limit: int | None = None) -> Evaluation:
        with dropping(list(self.layers.values()), kept):
            return evaluate_tasks(
                self.program, criteria or self.criteria, self.split, self.batch_size, limit or self.samples
            )

    def observe(self, kept: Kept) -> dict[str, Routed]:
        with dropping(list(self.layers.values()), kept):
            return observe(self.program, self.split, self.batch_size, self.samples)

    def cost(self, kept: Kept, routed: Mapping[str, Routed]) -> float:
        """The network's parameters, or its MACs for a sample with the places that `routed` found empty left out."""
        if self.kind == "macs":
            return self.fixed - saved_macs(self.program, routed, self._counted())
        saved = 0
        for layers in self.together.values():
            saved += layers[0].parameters_per_expert() * (layers[0].rows - rows_left(layers, kept))
        return self.fixed - saved

    def reach(self, target: float, floor: Mapping[str, int]) -> tuple[Kept, float]:
        """Drop experts until the cost is `target` or all layers are at their `floor`; returns the rest and its cost."""
        kept = {path: list(experts) for path, experts in self.everything.items()}
        routed = self.observe(kept)
        if self.kind == "macs":
            self._drop_unused(kept, routed, floor)
        cost = self.cost(kept, routed)
        while cost > target:
            saved = self._savings(kept, routed, floor)
            if not saved:
                break
            harm = self._harm(kept, saved, routed)
            cost = self._drop(kept, harm, saved, floor, cost, target)
            routed = self.observe(kept)
            cost = self.cost(kept, routed)
            gone = sum(len(self.everything[path]) - len(kept[path]) for path in self.together)
            self.log(f"extract: {gone} experts dropped, {self.kind} {cost:,.0f}")
        return kept, cost

    def give_back(self, kept: Kept, broken: Callable[[Evaluation], Mapping[str, Any]]) -> Kept:
        """Put experts back, those that harm the `broken` tasks most first, until no limit is broken or none is gone."""
        kept = {path: list(experts) for path, experts in kept.items()}
        while True:
            tasks = broken(self.evaluate(kept))
            gone = [e for e in self.removed if e["expert"] not in experts_of(self.together[e["layer"]], kept)]
            if not tasks or not gone:
                return kept
            gone.sort(key=lambda entry: -max(entry["growth"][task] for task in tasks))
            for entry in gone[: math.ceil(len(gone) * _STEP)]:
                for layer in self.together[entry["layer"]]:
                    if entry["expert"] in layer.present:
                        kept[layer.path] = sorted([*kept[layer.path], entry["expert"]])

    def _drop_unused(self, kept: Kept, routed: Mapping[str, Routed], floor: Mapping[str, int]) -> None:
        """Drop what no token goes to, in place: it saves no MACs, but is there for nothing."""
        for path, layers in self.together.items():
            used = torch.stack([one.places(layer.path) for one in routed.values() for layer in layers]).sum(0)
            for expert in experts_of(layers, kept):
                if not float(used[expert]) and _above(layers, kept, floor):
                    _remove(layers, kept, expert)
                    self.removed.append({"layer": path, "expert": expert, "growth": dict.fromkeys(self.original, 0.0)})

    def _savings(self, kept: Kept, routed: Mapping[str, Routed], floor: Mapping[str, int]) -> dict[Expert, float]:
        """What each expert that may go would save."""
        found: dict[Expert, float] = {}
        distinct = {id(one): one for one in routed.values()}.values()
        for path, layers in self.together.items():
            layer = layers[0]
            if not _above(layers, kept, floor):
                continue
            places = torch.stack([one.places(each.path) for one in distinct for each in layers]).sum(0)
            places = places / self._counted()
            for expert in experts_of(layers, kept):
                saved = float(layer.parameters_per_expert())
                if self.kind == "macs":
                    saved = float(places[expert]) * layer.macs_per_place() if layer.ours else 0.0
                if saved > 0:
                    found[path, expert] = saved
        return found

    def _harm(
        self, kept: Kept, candidates: Mapping[Expert, float], routed: Mapping[str, Routed]
    ) -> dict[Expert, dict[str, float]]:
        """Growth of each task's loss for each candidate alone, in units of the loss with all experts."""
        self.log(f"extract: measuring what each of {len(candidates)} experts is worth to {len(self.original)} tasks")
        base = self.evaluate(kept, limit=self.trial_samples).losses
        found = {}
        for path, expert in tracked(candidates, "harm of experts"):
            layers = self.together[path]
            used = [
                task.name
                for task in self.criteria.tasks
                if any(float(routed[task.name].places(layer.path)[expert]) > 0 for layer in layers)
            ]
            growth = dict.fromkeys(base, 0.0)
            if used:
                without = kept | {layer.path: [e for e in kept[layer.path] if e != expert] for layer in layers}
                losses = self.evaluate(without, self.criteria.restricted(used), self.trial_samples).losses
                growth |= {task: (losses[task] - base[task]) / max(self.original[task], 1e-12) for task in used}
            found[path, expert] = growth
        return found

    def _drop(
        self,
        kept: Kept,
        harm: Mapping[Expert, Mapping[str, float]],
        saved: Mapping[Expert, float],
        floor: Mapping[str, int],
        cost: float,
        target: float,
    ) -> float:
        """Drop a step's worth from `kept`, in place; returns the cost that should follow."""

        def rank(expert: Expert) -> tuple[float, float]:
            worst = max(harm[expert].values())
            return max(worst, 0.0) / saved[expert], worst

        for path, expert in sorted(harm, key=rank)[: math.ceil(len(harm) * _STEP)]:
            if not _above(self.together[path], kept, floor):
                continue
            _remove(self.together[path], kept, expert)
            self.removed.append({"layer": path, "expert": expert, "growth": dict(harm[path, expert])})
            cost -= saved[path, expert]
            if cost <= target:
                break
        return cost

    def _counted(self) -> int:
        return min(self.samples, len(self.split))


def experts_of(layers: Sequence[MoeLayer], kept: Mapping[str, Sequence[int]]) -> list[int]:
    """The experts that any of the layers keeps; they share them."""
    return sorted({expert for layer in layers for expert in kept[layer.path]})


def _above(layers: Sequence[MoeLayer], kept: Mapping[str, Sequence[int]], floor: Mapping[str, int]) -> bool:
    """Whether each of the layers can lose another expert."""
    return all(len(kept[layer.path]) > floor[layer.path] for layer in layers)


def _remove(layers: Sequence[MoeLayer], kept: Kept, expert: int) -> None:
    for layer in layers:
        if expert in kept[layer.path]:
            kept[layer.path].remove(expert)
