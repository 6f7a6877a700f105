"""Runs a program at any configuration of its widths, with the weights that it has: `Supernet`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from mtlc.compress.channels.channel_groups import slice_step
from mtlc.compress.channels.slicing import sliced
from mtlc.compress.channels.unit import Unit
from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.width_table import WidthTable
from mtlc.errors import UserError, one_line
from mtlc.hw.cost.count import workload
from mtlc.program.program import HistoryEntry, Program
from mtlc.program.surgery import Step, cut, tensor_dimensions

Selection = int | Tensor | None
"""Of one side of a layer: that many leading indices, these indices, or all (None)."""


class Supernet:
    """A program with a table of widths. The program is the widest network; narrower ones are slices of its weights."""

    def __init__(self, program: Program, table: WidthTable) -> None:
        self.program, self.table = program, table
        self._units = {unit.name: unit for unit in table.units}
        self._sides: dict[str, dict[str, list[tuple[Unit, tuple[tuple[int, ...], ...]]]]] = {}
        for unit in table.units:
            for member in unit.members:
                sides = self._sides.setdefault(member.layer, {"out": [], "in": []})
                # A layer that is cut on "both" sides at once, such as a norm, has one list of channels: it counts as
                # outputs.
                sides["in" if member.side == "in" else "out"].append((unit, member.indices))
        self._both = {m.layer for unit in table.units for m in unit.members if m.side == "both"}
        self._sizes = {(layer, side): self._size(layer, side) for layer in self._sides for side in ("out", "in")}
        self._selections: dict[tuple[str, str, tuple[int, ...]], Selection] = {}
        self._costs: _Costs | None = None

    @classmethod
    def of(cls, program: Program) -> Supernet:
        """The supernet that a checkpoint holds. Raises `UserError` for a program that is none."""
        # The last change of the network must be the one that made it slimmable: any later one would move channels that
        # the table counts.
        for entry in reversed(program.history):
            for step in reversed(entry.surgery):
                if step.get("kind") == "widths":
                    return cls._read(program, step)
                raise UserError(
                    f"the program was changed by {entry.name!r} after its last 'slim', or never had one: "
                    "its widths are fixed; make it "
                    "with: mtlc slim JOB"
                )
        raise UserError("the program has one width: make a slimmable one with: mtlc slim JOB")

    @classmethod
    def _read(cls, program: Program, step: Step) -> Supernet:
        table = WidthTable.from_step(step)
        if table.tasks != program.task_names:
            raise UserError(
                f"the widths are those of the tasks {', '.join(table.tasks)}, "
                f"and the program has {', '.join(program.task_names)}"
            )
        try:
            supernet = cls(program, table)
            fits = all(
                index < supernet._sizes[member.layer, "in" if member.side == "in" else "out"]
                for unit in table.units
                for member in unit.members
                for slot in member.indices
                for index in slot
            )
        except (AttributeError, StopIteration) as error:
            raise UserError(f"the checkpoint's width table is damaged: {one_line(error)}") from None
        if not fits:
            raise UserError("the checkpoint's width table is damaged: it has channels that the network does not have")
        return supernet

    @property
    def largest(self) -> Configuration:
        return self.table.largest

    @property
    def smallest(self) -> Configuration:
        return self.table.smallest

    @property
    def stages(self) -> tuple[str, ...]:
        return self.table.stages

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.table.tasks

    def encoders(self) -> list[tuple[float, ...]]:
        """All widths of the encoder, from the narrowest."""
        return list(product(*(self.table.options(stage) for stage in self.stages)))

    def decoder_options(self, task: str) -> tuple[float, ...]:
        """The widths of a task's decoder, rising."""
        return self.table.options(task)

    @property
    def trained(self) -> tuple[Configuration, ...]:
        """The configurations that the last training was for; none if it was for all."""
        report = self.program.history[-1].report if self.program.history else {}
        try:
            found = [Configuration(tuple(c["encoder"]), tuple(c["decoders"])) for c in report.get("pool", ())]
        except (KeyError, TypeError):
            raise UserError("the checkpoint's report of its last 'slim' is damaged: pool") from None
        return tuple(c for c in found if self.table.has(c))

    # -- running ---------------------------------------------------------------------------------------------------

    @contextmanager
    def at(self, configuration: Configuration) -> Iterator[None]:
        """Within the block the module runs at a configuration; gradients reach the shared weights.

        Batch norms get statistics of their own there, which are thrown away: those of the widest network are kept.
        """
        # The widest network is the module itself: its own statistics, its own tensors, nothing to put back.
        if configuration == self.largest:
            yield
            return
        module, undo = self.program.module, list[tuple[Any, str, Any]]()
        kept = self.table.kept_counts(configuration)
        try:
            for layer in module.modules():  # those of layers that lose nothing too: they see other inputs
                for name, buffer in layer._buffers.items():
                    if buffer is not None:
                        undo.append((layer._buffers, name, buffer))
                        layer._buffers[name] = buffer.clone()
            for path in self._sides:
                # Views of the shared tensors, put past `nn.Module`'s checks: a view is no parameter, but its gradient
                # arrives in the one that it is cut from.
                self._lend(module.get_submodule(path), path, kept, undo)
            for unit in self.table.units:
                gone = unit.channels - kept[unit.name]
                for path, attribute, share in unit.attributes if gone else ():
                    owner = module.get_submodule(path)
                    undo.append((vars(owner), attribute, getattr(owner, attribute)))
                    setattr(owner, attribute, getattr(owner, attribute) - share * gone)
            yield
        finally:
            # Last change first: buffers were replaced by a copy, and then by a slice of it.
            for store, name, value in reversed(undo):
                store[name] = value

    def selection(self, layer: str, side: str, kept: dict[str, int]) -> Selection:
        """Which indices of a side ("out", "in") of a layer remain when units keep so many channels."""
        units = self._sides[layer][side]
        counts = tuple(kept[unit.name] for unit, _ in units)
        # None rather than a full list: the tensor is then taken as it is.
        if all(count == unit.channels for count, (unit, _) in zip(counts, units, strict=True)):
            return None
        key = (layer, side, counts)
        if key not in self._selections:
            self._selections[key] = self._select(layer, side, counts)
        return self._selections[key]

    def _select(self, layer: str, side: str, counts: tuple[int, ...]) -> Selection:
        lost = {
            index
            for (unit, slots), count in zip(self._sides[layer][side], counts, strict=True)
            for channel in range(count, unit.channels)
            for index in slots[channel]
        }
        # A unit's channels may be spread over a layer (behind a concatenation, or heads in qkv):
        #
        #     qkv rows      q h0  q h1  k h0  k h1  v h0  v h1          one head of two: rows of h0, a list of indices
        #     conv outputs  0 1 2 3 4 5 6 7                             half a width: 0 1 2 3, said as the number 4
        #
        # A number makes a view, without a copy; a list has to gather.
        left = [index for index in range(self._sizes[layer, side]) if index not in lost]
        return len(left) if left == list(range(len(left))) else torch.tensor(left)

    def _size(self, layer: str, side: str) -> int:
        module = self.program.module.get_submodule(layer)
        # Any tensor of the layer says its size; one without columns (a norm's) has inputs as it has outputs.
        tensor = next(t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None and t.ndim)
        rows, columns = tensor_dimensions(module, tensor)
        return tensor.shape[rows if side == "out" or columns is None else columns]

    def read(self, layer: str, configuration: Configuration, wide: Tensor, dimension: int) -> Tensor:
        """Of what a layer of the widest network reads, the channels that it reads in a configuration."""
        if layer not in self._sides:
            return wide
        # A norm or a depth-wise convolution reads what it makes.
        same = layer in self._both and wide.shape[dimension] == self._sizes[layer, "out"]
        side = "out" if same else "in"
        return _selected(wide, dimension, self.selection(layer, side, self.table.kept_counts(configuration)))

    def _share(self, layer: str, side: str, kept: dict[str, int]) -> float:
        """The share of a side of a layer that remains."""
        selection = self.selection(layer, side, kept)
        if selection is None:
            return 1.0
        return _count(selection) / self._sizes[layer, side]

    def _lend(self, layer: Any, path: str, kept: dict[str, int], undo: list[tuple[Any, str, Any]]) -> None:
        out, into = self.selection(path, "out", kept), self.selection(path, "in", kept)
        if out is None and into is None:
            return
        _lend_sizes(layer, out, into, undo)
        for store in (layer._parameters, layer._buffers):
            for name, tensor in store.items():
                if tensor is None or tensor.ndim == 0:
                    continue
                rows, columns = tensor_dimensions(layer, tensor)
                smaller = _selected(tensor, rows, out)
                smaller = smaller if columns is None else _selected(smaller, columns, into)
                undo.append((store, name, tensor))
                store[name] = smaller

    # -- cutting ---------------------------------------------------------------------------------------------------

    def narrow(self, configuration: Configuration) -> Program:
        """The network of one configuration, cut out: plain layers, its own copy of the weights.

        Its batch-norm statistics are slices of the widest network's and want to be measured again.
        """
        module = self.program.clone().module
        step = slice_step(self._units, self.table.removed(configuration), module)
        with torch.no_grad():
            cut(module, step)
        widths = {"encoder": list(configuration.encoder), "decoders": list(configuration.decoders)}
        return self.program.after(module, HistoryEntry("narrow", widths, [step], {}))

    def kept_indices(self, configuration: Configuration) -> dict[str, tuple[list[int] | None, list[int] | None]]:
        """By layer, the output and input indices of the widest network that a configuration keeps (None: all)."""
        kept = self.table.kept_counts(configuration)
        found = {}
        for path in self._sides:
            out, into = (_listed(self.selection(path, side, kept)) for side in ("out", "in"))
            if out is not None or into is not None:
                found[path] = (out, into)
        return found

    # -- costs -----------------------------------------------------------------------------------------------------

    def macs(self, configuration: Configuration) -> int:
        """MACs of one sample through the whole network, exactly: what `mtlc.hw.cost.count.macs` counts for `narrow`."""
        widths = self.table.width_of(configuration)
        encoder = self.encoder_macs(configuration.encoder)
        return encoder + sum(self.decoder_macs(t, configuration.encoder, widths[t]) for t in self.tasks)

    def encoder_macs(self, encoder: Sequence[float]) -> int:
        """MACs of all layers that serve several tasks."""
        return self._counted().part(None, tuple(encoder), 1.0)

    def decoder_macs(self, task: str, encoder: Sequence[float], width: float) -> int:
        """MACs of the layers that serve one task: they depend on the widths of the stages that the decoder reads."""
        return self._counted().part(task, tuple(encoder), width)

    def _counted(self) -> _Costs:
        if self._costs is None:
            self._costs = _Costs(self)
        return self._costs


def without_failing(supernet: Supernet) -> WidthTable:
    """The table without the units that stop the network at some width, or change an output's shape.

    Tried are the narrowest configuration, every width of each group among widest and among narrowest others: units that
    fit only if they lose the same channels may follow different groups.
    """
    table, program = supernet.table, supernet.program

    def why_not(removed: Mapping[str, range]) -> str | None:
        try:
            with torch.no_grad(), sliced(program.module, supernet._units, removed):
                shapes = {task: output.shape for task, output in program.outputs(program.example).items()}
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            return f"the network does not run without its trailing channels ({one_line(error)})"
        return None if shapes == expected else "its channels reach an output"

    program.module.eval()
    with torch.no_grad():
        expected = {task: output.shape for task, output in program.outputs(program.example).items()}
    reasons: dict[str, str] = {}
    # Not all configurations, whose number is a product over groups: with G groups of W widths, 2·G·W at most.
    tried = [table.removed(configuration) for configuration in _one_group_apart(table)]
    failing = True
    while failing:  # what ran may not run without what was dropped since
        failing = False
        for everything in tried:
            removed = {name: gone for name, gone in everything.items() if name not in reasons}
            if why_not(removed) is None:
                continue
            failing, running = True, dict[str, range]()
            for name, gone in removed.items():  # beside those that run: some fail only together
                why = why_not({**running, name: gone})
                if why is None:
                    running[name] = gone
                else:
                    reasons[name] = why
    return table.without(reasons) if reasons else table


def _one_group_apart(table: WidthTable) -> list[Configuration]:
    """The narrowest configuration, and all where one group's width differs from the narrowest or widest others."""
    found = [table.smallest]
    for others in (table.largest, table.smallest):
        widths = (*others.encoder, *others.decoders)
        for place, group in enumerate(table.groups):
            for width in table.options(group):
                changed = (*widths[:place], width, *widths[place + 1 :])
                split = len(table.stages)
                found.append(Configuration(changed[:split], changed[split:]))
    return [configuration for configuration in dict.fromkeys(found) if configuration != table.largest]


class _Costs:
    """MACs by part of the network: a layer's are its MACs at full width × the shares of its outputs and inputs that
    remain.

    What attention multiplies besides its layers, and what experts run as one operator, falls by a constant for every
    head or hidden channel, measured once with one of each gone.
    """

    def __init__(self, supernet: Supernet) -> None:
        from mtlc.compress.slimmable.layer_places import survey

        self._supernet, program = supernet, supernet.program
        places = survey(program)
        # MACs are apportioned so that a configuration's are a sum: None has what serves several tasks, and its share
        # depends on encoder widths alone; a task's part depends on them and on its own decoder's.
        self._layers: dict[str | None, list[tuple[str, int]]] = {part: [] for part in (None, *supernet.tasks)}
        macs = {path: operator.macs for path, operator in workload(program).by_layer().items() if operator.macs}
        for path, count in macs.items():
            # An operator may be a module's with layers inside (experts): it serves whichever tasks these serve.
            inside = [p.tasks for layer, p in places.items() if layer == path or layer.startswith(f"{path}.")]
            tasks = frozenset().union(*inside) if inside else frozenset(supernet.tasks)
            alone = len(tasks) == 1 and len(supernet.tasks) > 1
            self._layers[next(iter(tasks)) if alone else None].append((path, count))
        self._own = self._own_macs(macs)
        self._part = lru_cache(maxsize=None)(self._count)

    def part(self, task: str | None, encoder: tuple[float, ...], width: float) -> int:
        return self._part(task, encoder, width)

    def _count(self, task: str | None, encoder: tuple[float, ...], width: float) -> int:
        supernet = self._supernet
        # The other decoders' widths do not matter to this part; any will do.
        decoders = tuple(width if name == task else 1.0 for name in supernet.tasks)
        kept = supernet.table.kept_counts(Configuration(encoder, decoders))
        total = 0.0
        for path, macs in self._layers[task]:
            share = 1.0
            for side in ("out", "in") if path in supernet._sides else ():
                share *= supernet._share(path, side, kept)
            total += macs * share
        for unit, (path, each) in self._own.items():
            if any(path == layer for layer, _ in self._layers[task]):
                total -= each * (supernet._units[unit].channels - kept[unit])
        # Each layer's share is an exact fraction of whole MACs; rounding takes off what floats have added.
        return round(total)

    def _own_macs(self, macs: dict[str, int]) -> dict[str, tuple[str, float]]:
        """For every unit that a module keeps to itself, the module and its own MACs per channel.

        Its own are those that none of its layers does.
        """
        supernet = self._supernet
        inside = {name: unit for name, unit in supernet._units.items() if unit.kind != "channels"}
        if not inside:
            return {}
        with sliced(supernet.program.module, supernet._units, {name: [0] for name in inside}):
            smaller = {path: operator.macs for path, operator in workload(supernet.program).by_layer().items()}
        layers = {m.layer for unit in inside.values() for m in unit.members}
        found = {}
        for name in inside:
            for path, count in macs.items():
                if (
                    path not in layers
                    and (path == name or path.startswith(f"{name}."))
                    and count != smaller.get(path, 0)
                ):
                    found[name] = (path, float(count - smaller.get(path, 0)))
        return found


def _lend_sizes(layer: Any, out: Selection, into: Selection, undo: list[tuple[Any, str, Any]]) -> None:
    """Attributes that say how large the layer is: some forwards read them beside the tensors."""
    sizes: dict[str, Any] = {}
    if out is not None:
        sizes |= dict.fromkeys(("out_channels", "out_features", "num_features", "num_channels"), _count(out))
    if into is not None:
        sizes |= dict.fromkeys(("in_channels", "in_features"), _count(into))
    if out is not None and isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.groups > 1:
        # Whole groups go, so outputs say how many are left, and inputs follow from these.
        sizes["groups"] = _count(out) // (layer.out_channels // layer.groups)
        sizes["in_channels"] = sizes["groups"] * (layer.in_channels // layer.groups)
    elif out is not None and isinstance(layer, nn.LayerNorm):
        sizes["normalized_shape"] = (_count(out),)
    elif out is not None and isinstance(layer, nn.PReLU):
        sizes["num_parameters"] = _count(out)
    for name, value in sizes.items():
        if name in vars(layer):
            undo.append((vars(layer), name, vars(layer)[name]))
            vars(layer)[name] = value


def _count(selection: int | Tensor) -> int:
    return selection if isinstance(selection, int) else len(selection)


def _selected(tensor: Tensor, dimension: int, selection: Selection) -> Tensor:
    if selection is None:
        return tensor
    if isinstance(selection, int):
        return tensor.narrow(dimension, 0, selection)
    return tensor.index_select(dimension, selection.to(tensor.device))


def _listed(selection: Selection) -> list[int] | None:
    if selection is None:
        return None
    return list(range(selection)) if isinstance(selection, int) else selection.tolist()
