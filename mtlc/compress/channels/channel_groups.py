"""Finds pruning units, the channels that a network can lose only together, and cuts them out of it.

A unit is everything that must lose the same channels together: the layers that produce them (residual partners
included), their norms, per-channel scales and other tensors beside them, and the input channels of the layers that
consume them (pagcp.md's *unit*). They are found on the graph of `torch.export`
(`mtlc.compress.channels.label_propagation`); the heads of attention modules are known by structure too
(`mtlc.compress.channels.attention_heads`), and so are the hidden channels that all experts of a layer have in common,
whatever the example is routed to. Every unit is tried: the network without a third of its channels must compute what
its own graph computes with them masked. Of a network that `torch.export` refuses torch-pruning's graph is read
(`mtlc.compress.channels.traced_groups`). The outputs of task heads are no units.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from zlib import crc32

import torch
from torch import Tensor, nn

from mtlc.compress.channels.attention_heads import Attention, attentions
from mtlc.compress.channels.coupled_units import Aliases, CoupledUnits, expert_units, head_note, ignored
from mtlc.compress.channels.exported_network import ExportedNetwork
from mtlc.compress.channels.label_propagation import LabelPropagation, Tied
from mtlc.compress.channels.masked_network import MaskedNetwork, Mismatch, alternate
from mtlc.compress.channels.slicing import removed_indices, sliced
from mtlc.compress.channels.traced_groups import TracedGroups
from mtlc.compress.channels.unit import LeftAlone, Unit
from mtlc.errors import UserError, one_line
from mtlc.program.modes import evaluating
from mtlc.program.surgery import Step, cut, keeping_frozen, whole_number

Pattern = Callable[[Unit], Sequence[int]]
"""Which channels a trial takes from a unit."""
_RESIDUAL = "the width of a transformer, which all its blocks share: residual = true lets it go"
_MOST_ATTRIBUTES = 8  # whole numbers of modules that may have to fall with a unit
_LARGE = 1 << 17  # elements of all inputs


class ChannelGroups:
    """The units of one network, and the surgery on it.

    `notes` say what a user should know of how they were found. `tested` is False for units of a network that has no
    graph: that zeros stand for a channel is then still to be tried.
    """

    def __init__(
        self, module: nn.Module, example: tuple[Tensor, ...], ignore: Sequence[str] = (), residual: bool = True
    ) -> None:
        """`ignore`: patterns of layers that keep their channels; without `residual` transformers keep their width."""
        self.module = module
        self.units: list[Unit] = []
        self.left_alone: list[LeftAlone] = []
        self.notes: list[str] = []
        self.tested = True
        names = [name for name, _ in module.named_modules()]
        unmatched = [p for p in ignore if not fnmatch.filter(names, p)]
        if unmatched:
            raise UserError(f"ignore = {unmatched[0]!r} matches no layer of the network")
        example = _few(tuple(_telling(tensor) for tensor in example))
        with torch.random.fork_rng(devices=[]), evaluating(module):
            try:
                network = ExportedNetwork(module, example)
            except UserError as error:
                self._read_traced(example, ignore, str(error))
            else:
                self._read_exported(network, ignore, residual)
        self.units.sort(key=lambda unit: unit.name)

    def _read_traced(self, example: tuple[Tensor, ...], ignore: Sequence[str], why: str) -> None:
        traced = TracedGroups(self.module, example, ignore)
        self.units, self.left_alone, self.tested = traced.units, traced.left_alone, False
        self.notes.append(f"{why}: channels are followed by gradients, which shows less, and trials run it whole")

    def _read_exported(self, network: ExportedNetwork, ignore: Sequence[str], residual: bool) -> None:
        found = list(attentions(self.module))
        preferred: dict[str, int] = {}
        loose: set[str] = set()

        def read() -> tuple[float, _Reading]:
            tied = [one for item in found if item.name not in loose for one in _tied(item)]
            reading = _Reading(self.module, network, found, tied, preferred, ignore, residual)
            return reading.weights_in_units(), reading

        best = read()
        # Heads that are laid out in another way than most: the graph then says what goes together.
        loose = best[1].refused_heads(found)
        if loose:
            best = max(read(), best, key=lambda one: one[0])  # of equals the first
        # Channels that are spread over dimensions may shrink along one of them only, and the graph does not say which:
        # where the network does not run with the likely one, others are tried: those of reshapes, those of grouped
        # convolutions (the places of all groups instead of whole groups), and both.
        first = best[1]
        for kinds in (("view",), ("conv",), ("view", "conv")):
            other = first.other_choices(kinds)
            if other and (len(kinds) == 1 or len(other) > max(len(first.other_choices((kind,))) for kind in kinds)):
                preferred = other
                best = max(best, read(), key=lambda one: one[0])
        self.units, self.left_alone = best[1].units, best[1].left_alone

    def prune(self, removed: Mapping[str, Sequence[int]]) -> list[Step]:
        """Remove channels of units, by name, from the module, in place; the surgery steps that replay it, in order."""
        removed = {name: channels for name, channels in removed.items() if channels}
        if not removed:
            return []
        step = slice_step({unit.name: unit for unit in self.units}, removed, self.module)
        with keeping_frozen(self.module):
            cut(self.module, step)
        return [step]


class _Reading:
    """The units of one network under one choice of dimensions, each of them tried."""

    def __init__(
        self,
        module: nn.Module,
        network: ExportedNetwork,
        found: Sequence[Attention],
        tied: Sequence[Tied],
        preferred: Mapping[str, int],
        ignore: Sequence[str],
        residual: bool,
    ) -> None:
        self._module, self._preferred = module, preferred
        self._propagation = LabelPropagation(network, module, tied, preferred)
        coupled = CoupledUnits(module, self._propagation, found, Aliases(module))
        self._classes = coupled.classes
        self.left_alone = coupled.left_alone
        self._refused: list[str] = [item.name for item in coupled.left_alone if "tied together" in item.why]
        self._masked = MaskedNetwork(module, self._propagation)
        self._experts: set[str] = set()
        self._ignored: set[str] = set()
        self._mended: dict[str, Unit] = {}
        units = [*coupled.units, *self._expert_units()]
        taken = []
        for unit in units:
            if ignored(unit, ignore):
                self.left_alone.append(LeftAlone(unit.name, unit.channels, "ignored by the job"))
                self._ignored.add(unit.name)
            elif unit.residual and not residual:
                self.left_alone.append(LeftAlone(unit.name, unit.channels, _RESIDUAL))
            else:
                taken.append(unit)
        self.units = self._agreeing(taken)

    def other_choices(self, kinds: Sequence[str]) -> dict[str, int]:
        """For the places where channels that were refused spread over dimensions, the next dimension to try.

        `kinds`: "conv" for grouped convolutions, "view" for all that only moves elements.
        """
        refused = {one for name in self._refused for one in self._classes.get(name, ())}
        other = {}
        for choice in self._propagation.choices:
            present = set(self._propagation.classes.of(choice.channels).tolist())
            next_one = self._preferred.get(choice.node, 0) + 1
            kind = "conv" if choice.node.startswith("conv") else "view"
            if kind in kinds and present & refused and next_one < len(choice.dimensions):
                other[choice.node] = next_one
        return other

    def refused_heads(self, found: Sequence[Attention]) -> set[str]:
        """The attention modules whose heads, as they were thought to lie, cannot go."""
        heads = {unit.name for unit in self.units if unit.kind == "heads"}
        alone = {item.name for item in self.left_alone} - self._ignored
        return {item.name for item in found if item.why is None and item.name not in heads and item.name in alone}

    def weights_in_units(self) -> float:
        """How many weights lie in units, each as often as a unit reaches it: what there is to win."""
        found = 0.0
        for unit in self.units:
            for member in unit.members:
                size = self._size(member.layer) / max(1, len(member.indices[0]))
                found += size * (1 - 1 / unit.channels)
        return found

    def _size(self, name: str) -> int:
        tensors = dict(self._module.named_parameters(remove_duplicate=False))
        return sum(t.numel() for n, t in tensors.items() if n == name or n.rpartition(".")[0] == name)

    def _expert_units(self) -> Iterator[Unit]:
        """The hidden channels of every module with linear layers of experts `fc1` and `fc2`."""
        for unit in expert_units(self._module):
            self._experts.add(unit.name)
            yield unit

    def _agreeing(self, units: Sequence[Unit]) -> list[Unit]:
        """Those of `units` without which the network computes what its masked graph does. The others are left alone."""
        present, why, agreed = list(units), dict[str, str](), 0
        order = {unit.name: index for index, unit in enumerate(sorted(units, key=lambda one: one.name))}
        # All of them by a third; then unequal parts, as a search would leave: some run only if they lose as many.
        patterns: list[Pattern] = [_a_third, lambda unit: _every_second(unit, order[unit.name]), _unequal]
        while agreed < len(patterns):
            mended = len(self._mended)
            blamed = self._blamed(present, patterns[agreed])
            if not blamed and mended == len(self._mended):
                agreed += 1
                continue
            agreed = 0 if mended < len(self._mended) else agreed
            why |= blamed
            present = [unit for unit in present if unit.name not in blamed]
        for unit in units:
            if unit.name in why:
                self.left_alone.append(LeftAlone(unit.name, unit.channels, why[unit.name]))
                self._refused.append(unit.name)
        return [self._mended.get(unit.name, unit) for unit in present]

    def _blamed(self, units: Sequence[Unit], pattern: Pattern) -> dict[str, str]:
        """Units that something is wrong with, and what; none if all of them can be cut together."""
        if not units:
            return {}
        failure = self._tried(units, pattern)
        if failure is None:
            return {}
        if isinstance(failure, Mismatch) and failure.classes:
            # What a layer reads may also differ for what others did upstream: each is asked alone.
            suspects = [u for u in units if failure.classes & set(self._classes.get(u.name, ()))]
            if len(suspects) < len(units):
                known, alone = len(self._mended), dict[str, str]()
                for unit in suspects:
                    alone |= self._blamed([unit], pattern)
                if alone or known < len(self._mended):
                    return alone
        if len(units) == 1:
            mended = self._with_attributes(units[0], pattern)
            if mended is not None:
                self._mended[mended.name] = mended
                return {}
            return {units[0].name: _told(failure)}
        # Halves, until single units are left that fail alone; or two that fail together, of which one has to stay.
        half, known = len(units) // 2, len(self._mended)
        blamed = {**self._blamed(units[:half], pattern), **self._blamed(units[half:], pattern)}
        if blamed or known < len(self._mended):
            return blamed
        return {units[-1].name: _told(failure)}

    def _with_attributes(self, unit: Unit, pattern: Pattern) -> Unit | None:
        """The unit with whole numbers that its modules keep of its size, if the network runs when they fall with it.

        Looked at are the modules in which its channels are reshaped: a forward that writes `view(…, self.heads, …)`
        counts on its own numbers.
        """
        found = [
            (path, name, share)
            for (path, size), share in sorted(self._propagation.reshaped_sizes(self._classes[unit.name][0]).items())
            for name in _whole_numbers(self._module.get_submodule(path), size)
        ][:_MOST_ATTRIBUTES]
        single = [(one,) for one in found] if len(found) > 1 else []
        for attributes in (tuple(found), *single) if found else ():
            by_layers = unit.by_layers and not any("." in name for _, name, _ in attributes)
            mended = replace(unit, attributes=(*unit.attributes, *attributes), by_layers=by_layers)
            if self._tried([mended], pattern) is None:
                return mended
        return None

    def _tried(self, units: Sequence[Unit], pattern: Pattern) -> Exception | None:
        units = [self._mended.get(unit.name, unit) for unit in units]
        by_name = {unit.name: unit for unit in units}
        removed = {unit.name: taken for unit in units if (taken := pattern(unit))}
        # The experts' hidden channels have no labels: the graph is not told of them, and only that it runs is tried.
        labelled = [name for name in removed if name not in self._experts]
        gone = {self._classes[name][channel] for name in labelled for channel in removed[name]}
        lost = {name: removed[name] for name in labelled}
        example = self._propagation.network.example
        try:
            with sliced(self._module, by_name, lost):
                self._masked.compare(gone, partial(self._module, *example))
            if len(labelled) < len(removed):
                with torch.no_grad(), sliced(self._module, by_name, removed):
                    self._module(*example)
        except Exception as error:  # the code is another's: it may raise anything
            return error
        return None


def _a_third(unit: Unit) -> Sequence[int]:
    return alternate(unit.channels, unit.multiple)


def _every_second(unit: Unit, place: int) -> Sequence[int]:
    return _a_third(unit) if place % 2 else ()


def _unequal(unit: Unit) -> Sequence[int]:
    """Nothing, a third or two thirds, by the unit's name."""
    third = _a_third(unit)
    rest = sorted(set(range(unit.channels)) - set(third))
    fits = unit.multiple == 1 or len(third) % unit.multiple == 0
    return ((), third, rest if fits else third)[crc32(unit.name.encode()) % 3]


def slice_step(units: Mapping[str, Unit], removed: Mapping[str, Sequence[int]], module: nn.Module) -> Step:
    """The surgery step of kind "slice" that takes `removed` channels of any units from `module` at once.

    `module` is the network that the units were found in, as it is before the step; it is not changed.
    """
    layers = removed_indices(units, removed)
    attributes: dict[tuple[str, str], int] = {}
    for name, channels in sorted(removed.items()):
        for path, attribute, share in units[name].attributes:
            # Several units may take their share of one attribute: each goes on from what the last one left.
            value = attributes.get((path, attribute), whole_number(module.get_submodule(path), attribute) or 0)
            attributes[path, attribute] = value - share * len(set(channels))
    sides = [(name, side, sorted(gone)) for name, found in sorted(layers.items()) for side, gone in found.items()]
    names = sorted({name for name, side, gone in sides if not side.startswith("dim") and gone})
    return {
        "kind": "slice",
        "layers": [[name, *(sorted(layers[name].get(side, ())) for side in ("out", "in"))] for name in names],
        "tensors": [[name, int(side[3:]), gone] for name, side, gone in sides if side.startswith("dim") and gone],
        "attributes": [[path, attribute, value] for (path, attribute), value in attributes.items()],
    }


def _whole_numbers(owner: nn.Module, size: int) -> Iterator[str]:
    """The attributes of a module that are this number, entries of lists and tuples too."""
    for name, value in sorted(vars(owner).items()):
        if name.startswith("_") or name == "training":
            continue
        if type(value) is int and value == size:
            yield name
        elif isinstance(value, list | tuple):
            yield from (f"{name}.{i}" for i, entry in enumerate(value) if type(entry) is int and entry == size)


def _tied(item: Attention) -> Iterator[Tied]:
    for layer, rows in item.rows.items():
        yield Tied(layer, rows, head_note(item), item.why)
    for layer in item.fixed:
        yield Tied(layer, (), "", "all queries share it")


def _told(failure: Exception) -> str:
    if isinstance(failure, Mismatch):
        return failure.why
    return f"the network does not run without its channels ({one_line(failure)})"


def _few(example: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One sample of large pictures: what channels belong together does not hang on how many there are."""
    batch = {tensor.shape[0] for tensor in example if tensor.ndim}
    if len(batch) != 1 or batch == {1} or sum(tensor.numel() for tensor in example) < _LARGE:
        return example
    return tuple(tensor[:1] if tensor.ndim else tensor for tensor in example)


def _telling(tensor: Tensor) -> Tensor:
    """An example that tells channels apart: random numbers instead of zeros, or of any other constant."""
    if not tensor.is_floating_point() or tensor.numel() < 2 or bool((tensor != tensor.flatten()[0]).any()):
        return tensor
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)).to(tensor)
