"""Works out what a network costs in MACs or parameters once channels are removed, without building it.

From the workload of the whole network every layer's MACs and parameters scale with the share of its input and output
channels that remain. What attention multiplies besides its layers, and what experts run as one operator, falls by a
constant for every head or hidden channel, measured once with one of each unit gone. The pipeline compares the claim
with the workload of the network that was built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from mtlc.compress.channels.slicing import removed_indices, sliced
from mtlc.compress.channels.unit import Unit
from mtlc.hw.cost.count import workload
from mtlc.program.program import Program
from mtlc.program.surgery import OWN_TENSORS, tensor_dimensions

Kind = Literal["macs", "params"]


class ChannelCosts:
    """Costs of one program under removed channels. `kind` is what `cost` returns: MACs of one sample, or parameters."""

    def __init__(self, program: Program, units: Mapping[str, Unit], kind: Kind = "macs") -> None:
        measured = workload(program)
        self._units, self.kind = units, kind
        self._macs = {name: operator.macs for name, operator in measured.by_layer().items()}
        self._total_macs, self._total_parameters = measured.macs, program.parameters_count()
        members = [member for unit in units.values() for member in unit.members]
        self._layers = {m.layer: program.module.get_submodule(m.layer) for m in members if not m.side.startswith("dim")}
        tensors = dict(program.module.named_parameters(remove_duplicate=False))
        self._tensors = {m.layer: tensors.get(m.layer) for m in members if m.side.startswith("dim")}
        self._seen_once = _first_owners(program.module)
        self._own = self._own_macs(program)
        self._own |= self._products(program)

    def cost(self, removed: Mapping[str, Sequence[int]]) -> float:
        return self.macs(removed) if self.kind == "macs" else self.parameters(removed)

    def macs(self, removed: Mapping[str, Sequence[int]]) -> float:
        saved = 0.0
        for name, sides in removed_indices(self._units, removed).items():
            layer = self._layers.get(name)
            if layer is not None and self._macs.get(name):
                saved += self._macs[name] * (1 - _share(layer, layer.weight, sides))  # type: ignore[arg-type]
        saved += sum(self._own[name] * len(set(channels)) for name, channels in removed.items() if name in self._own)
        # Products of shares leave tails of binary fractions; counts are whole, and are compared with counted ones.
        return round(self._total_macs - saved, 3)

    def parameters(self, removed: Mapping[str, Sequence[int]]) -> float:
        saved = 0.0
        for name, sides in removed_indices(self._units, removed).items():
            if name in self._layers:
                layer = self._layers[name]
                for attribute in OWN_TENSORS:
                    tensor = layer._parameters.get(attribute)
                    if tensor is not None and tensor.ndim > 0 and (name, attribute) in self._seen_once:
                        saved += tensor.numel() * (1 - _share(layer, tensor, sides))
            elif (bare := self._tensors[name]) is not None:
                share = 1.0
                for side, gone in sides.items():
                    share *= 1 - len(gone) / bare.shape[int(side[3:])]
                saved += bare.numel() * (1 - share)
        return round(self._total_parameters - saved, 3)

    def _own_macs(self, program: Program) -> dict[str, float]:
        """For every unit that a module keeps to itself, the MACs per channel that none of its layers does."""
        kept_inside = {name: unit for name, unit in self._units.items() if unit.kind in ("heads", "experts")}
        if not kept_inside:
            return {}
        # One channel of each unit goes at once: units lie in modules of their own, so what each module saves is told
        # apart by its path. All channels of a unit cost the same, so one says what the others do.
        with sliced(program.module, self._units, {name: [0] for name in kept_inside}):
            smaller = {name: operator.macs for name, operator in workload(program).by_layer().items()}
        layers = {m.layer for unit in kept_inside.values() for m in unit.members}
        return {
            unit: float(
                sum(
                    macs - smaller.get(path, 0)
                    for path, macs in self._macs.items()
                    if path not in layers and (path == unit or path.startswith(f"{unit}."))
                )
            )
            for unit in kept_inside
        }

    def _products(self, program: Program) -> dict[str, float]:
        """For every other unit whose channels something besides layers multiplies, the MACs per channel of that."""
        found = {}
        for name, unit in self._units.items():
            if not unit.multiplied or unit.kind in ("heads", "experts"):
                continue
            removed = {name: list(range(unit.multiple))}
            with sliced(program.module, self._units, removed):
                left = workload(program).macs
            found[name] = (self.macs(removed) - left) / unit.multiple
        return found


def _first_owners(module: nn.Module) -> set[tuple[str, str]]:
    """Layer and attribute of every parameter: of one that several layers have, those of the first."""
    return {(name.rpartition(".")[0], name.rpartition(".")[2]) for name, _ in module.named_parameters()}


def _share(layer: nn.Module, tensor: Tensor, sides: Mapping[str, set[int]]) -> float:
    """The share of one of a layer's tensors that remains."""
    rows, columns = tensor_dimensions(layer, tensor)
    share = 1 - len(sides["out"]) / tensor.shape[rows]
    return share if columns is None else share * (1 - len(sides["in"]) / tensor.shape[columns])
