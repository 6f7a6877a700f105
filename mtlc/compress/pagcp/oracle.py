"""Tells what removing channels costs each task: runs trials on cached activations.

It knows the network at the start of a round and the channels removed since. A trial zeroes the input weights of the
unit's consumers, lets the kept ones make up for them (`mtlc.compress.pagcp.reconstruction`), and runs only what depends
on them, on kept activations: the numbers are those of the pruned network (which is known of every unit before it is
relied on). Units for which zeroing is not the same, such as those under a layer norm, and networks that `torch.export`
refuses, are tried on sliced weights with whole forwards.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.compress.channels.slicing import removed_indices, sliced
from mtlc.compress.channels.unit import LeftAlone, Member, Unit
from mtlc.compress.pagcp.activation_graph import ActivationGraph, apart
from mtlc.compress.pagcp.expected_growth import ExpectedGrowth
from mtlc.compress.pagcp.reconstruction import Reconstruction
from mtlc.compress.pagcp.usable_units import usable_units
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria, none_labelled
from mtlc.evaluation.loss_totals import LossTotals
from mtlc.evaluation.splits import Batch, batches
from mtlc.program.placement import compute_device, device_of, moved
from mtlc.program.plain_state import copied
from mtlc.program.program import Program
from mtlc.program.surgery import input_dimension
from mtlc.program.task_modules import TaskOutputs

Losses = dict[str, float]
Removed = Mapping[str, Sequence[int]]

# Losses that are never negative: a partial sum over the limit settles a trial early.
_NON_NEGATIVE = {"cross_entropy", "l1", "normals_l1", "balanced_bce", "edge_bce", "mse"}


@dataclass
class Effort:
    """What an oracle has spent: trials asked, forwards in units of the whole network over the whole split, seconds."""

    trials: int = 0
    forward_equivalents: float = 0.0
    seconds: float = 0.0


class Oracle:
    """Per-task calibration losses of one program under removed channels.

    All runs on the `compute_device`: the weights, the data and what is kept of activations.
    """

    def __init__(
        self,
        program: Program,
        groups: ChannelGroups,
        criteria: Criteria,
        dataset: Any,
        *,
        samples: int | None = None,
        batch_size: int = 64,
        cache_bytes: int = 2 << 30,
        cached: bool = True,
        reconstruct: bool = False,
    ) -> None:
        self.effort = Effort()
        self.device = compute_device()
        if device_of(program.module) != self.device:
            program = replace(program, module=copied(program.module).to(self.device))
        self._program, self._criteria = program, criteria
        self._module = TaskOutputs(program).eval()
        self._batches = [moved(batch, self.device) for batch in batches(dataset, batch_size, samples)]
        self._sizes = [len(next(iter(batch.values()))) for batch in self._batches]
        self._group = batch_size
        # How many of the samples have a label of each task, known when all were seen once.
        self._labelled: dict[str, int] = dict.fromkeys((task.name for task in program.tasks), 1)
        self._names = [task.name for task in program.tasks]
        self._can_stop_early = all(task.loss in _NON_NEGATIVE for task in program.tasks)
        self.removed: dict[str, list[int]] = {}
        self.expected = ExpectedGrowth()
        self._progress: list[Losses] = []  # after each batch, the share of the first losses that it and all before had
        self._projected: Losses = {}  # by task that a limit cut short, what its loss would be if all batches were alike
        self.left_alone: list[LeftAlone] = list(groups.left_alone)
        self.notes: list[str] = list(groups.notes)
        self._weights: dict[str, Tensor] = {}
        self._reconstruction: Reconstruction | None = None
        self._orders: dict[str, list[int] | None] = {}
        # Trials since the last commit: channels, losses, and whether the losses are whole (not cut short by a limit).
        self._known: dict[tuple[str, int], tuple[list[int], Losses, bool]] = {}
        # The last trial that kept its limits, and by batch the activations that its commit takes over.
        self._held: tuple[tuple[str, list[int]], list[dict[Any, Any]]] | None = None
        # How near to its limit each task was when a unit was last tried ("": any unit): the nearest is run first.
        self._strain: dict[tuple[str, str], float] = {}
        started = time.perf_counter()
        with torch.inference_mode():
            self.units = {unit.name: unit for unit in groups.units}
            if not groups.tested:
                probe = tuple(tensor[:2] for tensor in self._inputs(self._batches[0]))
                found, left_alone = usable_units(self._module, list(groups.units), probe, self._alone)
                self.units = {unit.name: unit for unit in found}
                self.left_alone += left_alone
            units = list(self.units.values())
            # Where the units could not be followed on an exported graph there is none to keep activations of.
            self._graph = self._trace(units, cache_bytes) if cached and groups.tested else None
            self._reconstruction = self._moments() if reconstruct else None
            self.original = self._start()
        self.losses = dict(self.original)
        self.effort.seconds += time.perf_counter() - started

    # -- asking ----------------------------------------------------------------------------------------------------

    def trial(self, unit: str, channels: Sequence[int], limits: Mapping[str, float] | None = None) -> Losses:
        """Losses with the unit's `channels` (those removed before included) gone.

        With `limits`, the trial stops as soon as a task is sure to exceed its limit; the losses of that trial are then
        lower bounds (0 for a task that was not run), of which at least one is over its limit.
        """
        started = time.perf_counter()
        # A trial that a limit cut short has lower bounds. They answer again only if they exceed today's limits too.
        known = self._known.get((unit, len(channels)))
        if known is not None and known[0] == sorted(channels) and (known[2] or _exceeds(known[1], limits)):
            return dict(known[1])
        self.effort.trials += 1
        with torch.inference_mode():
            # Once a unit is gone that zeroing cannot stand for, kept activations are no longer those of the network.
            if self._graph is not None and self._all_maskable({*self.removed, unit}):
                changed = self._consumers_under([unit], {**self.removed, unit: channels})
                state = (unit, sorted(channels))
                losses = self._under(self._graph, list(changed), {**self._weights, **changed}, limits, state)
            else:
                losses = self._whole({**self.removed, unit: list(channels)}, limits)
        self._known[unit, len(channels)] = (sorted(channels), losses, limits is None or not _exceeds(losses, limits))
        whole, gone = self.units[unit].channels, len(self.removed.get(unit, ()))
        self.expected.note(unit, whole - gone, whole - len(channels), self.losses, {**losses, **self._projected})
        self.effort.seconds += time.perf_counter() - started
        return losses

    def commit(self, unit: str, channels: Sequence[int], losses: Losses) -> None:
        """Make a trial permanent."""
        started = time.perf_counter()
        self.removed[unit] = sorted(channels)
        self._known.clear()
        self.losses = dict(losses)
        if self._graph is not None and self.units[unit].maskable:
            with torch.inference_mode():
                changed = self._consumers_under([unit], self.removed)
                self._weights |= changed
                state = (unit, self.removed[unit])
                # A later trial of the sweep may have passed, and taken the place of this one's activations.
                if self._held is None or self._held[0] != state:
                    self._under(self._graph, list(changed), self._weights, None, state)
                self._adopt(self._graph)
        self.effort.seconds += time.perf_counter() - started

    def reset(self, removed: Removed) -> Losses:
        """Start anew from the round's network with `removed` channels gone; returns the losses."""
        started = time.perf_counter()
        before, self.removed = self.removed, {u: sorted(c) for u, c in removed.items() if c}
        self._known.clear()
        with torch.inference_mode():
            if self._graph is not None:  # its weights and activations are those of the maskable units alone
                touched = [u for u in {**before, **self.removed} if self.units[u].maskable]
                moved = [u for u in touched if before.get(u) != self.removed.get(u)]
                # Only what differs between the two states is run again. The weights are made anew from the round's own,
                # not undone: the last digits must not depend on the way to a state.
                names = [n for u in moved for n in self._weight_names(self.units[u])]
                self._weights = self._consumers_under([u for u in touched if u in self.removed], self.removed)
                self.losses = self._under(self._graph, names, self._weights, None)
                self._adopt(self._graph)
            if self._graph is None or not self._all_maskable({*before, *self.removed}):
                self.losses = self._whole(self.removed, None)
        self.effort.seconds += time.perf_counter() - started
        return dict(self.losses)

    @property
    def network(self) -> torch.nn.Module:
        """The network at the start of the round, whole; on the oracle's device."""
        return self._program.module

    def gone_inputs(self, layer: str) -> set[int]:
        """The input channels of a layer that are gone."""
        return removed_indices(self.units, self.removed).get(layer, {"in": set()})["in"]

    def order(self, unit: Unit) -> list[int] | None:
        """The unit's channels from the first to remove to the last by what the others make up for; None if unknown."""
        if unit.name not in self._orders:
            known = self._reconstruction is not None and unit.maskable
            self._orders[unit.name] = self._reconstruction.order(unit) if known and self._reconstruction else None
        return self._orders[unit.name]

    def reconstructed(self, removed: Removed | None = None) -> dict[str, Tensor]:
        """The weights (by parameter name, full size) with which `removed` channels are made up for: the committed ones
        by default.
        """
        return {} if self._reconstruction is None else self._zeroed(self.removed if removed is None else removed)

    def masking(self, program: Program, removed: Removed) -> AbstractContextManager[None]:
        """Within the block `program`, the round's or a copy, runs without `removed` channels, and nothing is rebuilt.

        What reads them has zeros for them; where that is not the same, such as under a layer norm, layers are lent
        smaller tensors.
        """
        of = next(p for p in program.module.parameters() if p.is_floating_point())
        weights = {name: weight.to(of.device, of.dtype) for name, weight in self._zeroed(removed).items()}
        rest = {name: channels for name, channels in removed.items() if not self.units[name].maskable}
        return sliced(program.module, self.units, rest, weights)

    def _zeroed(self, removed: Removed) -> dict[str, Tensor]:
        """The weights (by parameter name, full size) of all that reads `removed` channels of maskable units."""
        with torch.no_grad():
            changed = self._consumers_under([u for u in removed if self.units[u].maskable], removed)
        return {name.removeprefix("network."): weight for name, weight in changed.items()}

    def _all_maskable(self, units: Iterable[str]) -> bool:
        return all(self.units[name].maskable for name in units)

    # -- kept activations ------------------------------------------------------------------------------------------

    def _under(
        self,
        graph: ActivationGraph,
        names: Sequence[str],
        weights: Mapping[str, Tensor],
        limits: Mapping[str, float] | None,
        state: tuple[str, list[int]] = ("", []),
    ) -> Losses:
        """Losses under `weights`, which differ from the committed ones in the tensors `names`.

        Task by task, the one that was nearest to its limit first: a trial that fails seldom runs the other heads. The
        activations of one that passes are held for its commit, under `state`: the unit and its channels.
        """
        nodes, work = graph.touched(names), graph.work
        near = {i: self._strain.get((state[0], n), self._strain.get(("", n), 0.0)) for i, n in enumerate(self._names)}
        # The suffix of the changed weights is cut by output. What outputs share runs once, with the first of them:
        #
        #     conv2* --> relu --+--> head-a --> output a      part 0: conv2, relu, head-a   (a is nearest its limit)
        #                       +--> head-b --> output b      part 1: head-b                (not run if a fails)
        order = sorted(graph.touched_outputs(nodes), key=lambda i: -near[i])
        running = graph.to_run(nodes)
        parts = apart([graph.leading_to(i, running) for i in order])
        stages = [([i], part) for i, part in zip(order, parts, strict=True)]
        # Between two outputs the activations of all batches wait. Where they would take too much memory, each batch
        # runs through to all outputs at once.
        if not graph.fits_between(parts):
            reached = {node for part in parts for node in part}
            stages = [(order, [node for node in running if node in reached])]
        values = [graph.begin(i) for i in range(len(self._batches))]
        losses, self._projected = dict(self.losses), {}
        for number, (positions, now) in enumerate(stages):
            tasks, later = [self._names[i] for i in positions], [n for _, part in stages[number + 1 :] for n in part]

            # The defaults hold this round's values of the loop's variables.
            def run(
                index: int, positions: Sequence[int] = positions, now: Sequence[Any] = now, later: Sequence[Any] = later
            ) -> dict[str, Tensor]:
                graph.advance(values[index], now, later, weights)
                outputs = {self._names[i]: graph.output(values[index], i) for i in positions}
                if not later:
                    values[index] = graph.fresh(values[index])
                return outputs

            found = self._accumulate(run, tasks, limits)
            losses |= {task: found[task] for task in tasks}
            if limits is not None:
                for task in tasks:
                    self._strain[state[0], task] = self._strain["", task] = losses[task] / max(limits[task], 1e-12)
                if any(losses[task] > limits[task] for task in tasks):
                    # Zero is a lower bound for every task that was not run; one over its limit is enough to refuse.
                    not_run = [self._names[i] for later_on, _ in stages[number + 1 :] for i in later_on]
                    losses |= dict.fromkeys(not_run, 0.0)
                    self._projected |= {name: self.losses[name] for name in not_run}
                    break
        # Reached without `break`: every output ran, so the activations are whole and may be adopted.
        else:
            self._held = (state, [graph.fresh(v) for v in values])
        self._account(work)
        return losses

    def _adopt(self, graph: ActivationGraph) -> None:
        """The activations of the last trial become the committed ones."""
        assert self._held is not None
        for index, values in enumerate(self._held[1]):
            graph.adopt(index, values)
        self._held = None

    def _accumulate(
        self, run: Callable[[int], Mapping[str, Tensor]], touched: Sequence[str], limits: Mapping[str, float] | None
    ) -> Losses:
        totals = LossTotals(self._criteria, self._group, [t for t in self._program.tasks if t.name in touched])
        progress: list[dict[str, float]] = []
        for index, (batch, size) in enumerate(zip(self._batches, self._sizes, strict=True)):
            outputs = run(index)
            totals.update({name: outputs[name][:size] for name in touched}, batch)
            progress.append(dict(totals.sums))
            # What is still to come can only add, so the part so far over all samples is a lower bound of the mean.
            if limits is not None and self._can_stop_early and _exceeds(totals.shares(self._labelled), limits):
                self._projected |= self._expected_of(totals, len(progress))
                break
        else:
            totals.finish()
            self._labelled |= totals.counts
            if not self._progress:
                self._progress = [{n: v / max(totals.sums[n], 1e-12) for n, v in sums.items()} for sums in progress]
        return {**self.losses, **totals.shares(self._labelled)}

    def _expected_of(self, totals: LossTotals, batches_done: int) -> Losses:
        """What losses that ended early would be, by the share that so many batches had of the first losses."""
        shares = self._progress[batches_done - 1]
        return {n: loss / shares[n] if shares[n] > 0 else loss for n, loss in totals.shares(self._labelled).items()}

    def _account(self, work_before: float) -> None:
        assert self._graph is not None
        self.effort.forward_equivalents += (self._graph.work - work_before) / len(self._batches)

    def _weight_names(self, unit: Unit) -> list[str]:
        return [f"network.{member.layer}.weight" for member in unit.consumers]

    def _consumers_under(self, changed: Iterable[str], removed: Removed) -> dict[str, Tensor]:
        """The weights of all layers that consume the `changed` units, with everything in `removed` gone.

        A function of the round's first weights and of `removed` only, whatever the order of the commits.
        """
        # A layer may read several units (behind a concatenation). All that is gone from it is taken, each unit from its
        # own columns, so that asking for one unit also gives what the others left.
        layers = {m.layer for name in changed for m in self.units[name].consumers}
        weights = {}
        for layer in sorted(layers):
            weight = self._module.network.get_submodule(layer).weight.detach()  # type: ignore[operator]
            for name in sorted(removed):
                for member in self.units[name].consumers:
                    if member.layer == layer and removed[name] and self.units[name].maskable:
                        weight = self._without(member, weight, removed[name])
            weights[f"network.{layer}.weight"] = weight
        return weights

    def _alone(self, unit: str, channels: Sequence[int]) -> dict[str, Tensor]:
        return self._consumers_under([unit], {unit: channels})

    def _without(self, member: Member, weight: Tensor, channels: Sequence[int]) -> Tensor:
        if self._reconstruction is not None:
            return self._reconstruction.weight(member, weight, channels)
        columns = input_dimension(self._module.network.get_submodule(member.layer))
        gone = torch.tensor(member.of(channels), dtype=torch.long).to(weight.device)
        return weight.index_fill(columns, gone, 0.0)

    # -- whole forwards --------------------------------------------------------------------------------------------

    def _whole(self, removed: Removed, limits: Mapping[str, float] | None) -> Losses:
        weights = self._consumers_under(removed, removed) if self._reconstruction is not None else {}
        full = {name.removeprefix("network."): weight for name, weight in weights.items()}
        self._projected = {}
        # Full-size weights first, then the cut: the columns that the cut takes are those that were set to zero.
        with sliced(self._program.module, self.units, removed, full):

            def run(index: int) -> dict[str, Tensor]:
                self.effort.forward_equivalents += 1 / len(self._batches)
                return dict(zip(self._names, self._module(*self._inputs(self._batches[index])), strict=True))

            return self._accumulate(run, self._names, limits)

    # -- preparation -----------------------------------------------------------------------------------------------

    def _inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """The network's inputs.

        The graph has one batch size: a shorter last batch is filled up with its own samples.
        """
        size = max(2, self._sizes[0])  # torch.export makes a batch of one a constant
        return tuple(_fill(batch[name], size) for name in self._program.inputs)

    def _trace(self, units: Sequence[Unit], cache_bytes: int) -> ActivationGraph | None:
        """The network's graph, or none where `torch.export` refuses it: whole forwards serve such a network."""
        try:
            graph = ActivationGraph(self._module, self._inputs(self._batches[0]), cache_bytes)
        except UserError as error:
            self.notes.append(f"{error}: trials run it whole")
            return None
        wanted = [self._weight_names(unit) for unit in units if unit.maskable]
        # A trial replaces weights by name: one whose name the trace lost could never be replaced.
        if not {name for names in wanted for name in names} <= graph.weight_names:
            self.notes.append("the exported graph does not keep the layers' weights: trials run the network whole")
            return None
        graph.plan(wanted, len(self._batches))
        if graph.kept_bytes < graph.read_bytes:
            kept, read = graph.kept_bytes / 2**20, graph.read_bytes / 2**20
            self.notes.append(
                f"of {read:,.0f} MB of activations that trials read {kept:,.0f} MB are kept (a third of cache_mb = "
                f"{cache_bytes >> 20:,}); for the rest a trial runs {graph.run_again:.0%} of the network again"
            )
        return graph

    def _moments(self) -> Reconstruction:
        """What the consumers of maskable units see on the calibration split: one whole forward."""
        maskable = {name: unit for name, unit in self.units.items() if unit.maskable}
        self.effort.forward_equivalents += 1.0
        # A generator: `Reconstruction` draws from it while its hooks are in place. Samples that fill up a short batch
        # are left out, or they would count twice.
        runs = (
            self._module(*(t[:size] for t in self._inputs(b)))
            for b, size in zip(self._batches, self._sizes, strict=True)
        )
        return Reconstruction(self._module.network, maskable, runs)

    def _start(self) -> Losses:
        """Losses of the network as it is; the graph keeps its activations on the way."""
        self.losses = dict.fromkeys(self._names, 0.0)

        def run(index: int) -> dict[str, Tensor]:
            inputs = self._inputs(self._batches[index])
            outputs = self._module(*inputs) if self._graph is None else self._graph.add_batch(inputs)
            return dict(zip(self._names, outputs, strict=True))

        losses = self._accumulate(run, self._names, None)
        self.effort.forward_equivalents += 1.0
        for task in self._program.tasks:
            if not self._labelled[task.name]:
                raise none_labelled(task, f"the first {sum(self._sizes)} calibration samples")
        for name, loss in losses.items():
            if not math.isfinite(loss):
                raise UserError(
                    f"task {name!r}: its loss on the calibration split is {loss}; "
                    "look for NaN in the labels or the weights"
                )
        return losses


def _exceeds(losses: Mapping[str, float], limits: Mapping[str, float] | None) -> bool:
    return limits is not None and any(loss > limits[name] for name, loss in losses.items() if name in limits)


def _fill(tensor: Tensor, size: int) -> Tensor:
    repeats = -(-size // len(tensor))
    return tensor if len(tensor) == size else torch.cat([tensor] * repeats)[:size]
