"""What a network costs when channels of its units are gone, without running or rebuilding it.

From the workload of the whole network every layer's MACs and parameters scale with the share of its input and output
channels that remain. The pipeline compares the claim with the workload of the network that was built.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn

from mtlc.compress.slicing import removed_indices
from mtlc.compress.units import Unit
from mtlc.hw.workload import workload
from mtlc.program import Program

Kind = Literal["macs", "params"]


class ChannelCosts:
    """Costs of one program under removed channels. `kind` is what `cost` returns: MACs of one sample, or parameters."""

    def __init__(self, program: Program, units: Mapping[str, Unit], kind: Kind = "macs") -> None:
        measured = workload(program)
        self._units, self.kind = units, kind
        self._macs = {name: operator.macs for name, operator in measured.by_layer().items()}
        self._total_macs, self._total_parameters = measured.macs, program.parameters_count()
        self._layers = {m.layer: program.module.get_submodule(m.layer) for unit in units.values() for m in unit.members}

    def cost(self, removed: Mapping[str, Sequence[int]]) -> float:
        return self.macs(removed) if self.kind == "macs" else self.parameters(removed)

    def macs(self, removed: Mapping[str, Sequence[int]]) -> float:
        saved = 0.0
        for name, sides in removed_indices(self._units, removed).items():
            layer = self._layers[name]
            saved += self._macs.get(name, 0) * (1 - _share(layer, sides))
        return round(self._total_macs - saved, 3)

    def parameters(self, removed: Mapping[str, Sequence[int]]) -> float:
        saved = 0.0
        for name, sides in removed_indices(self._units, removed).items():
            layer = self._layers[name]
            for tensor in layer._parameters.values():
                if tensor is not None and tensor.ndim > 0:
                    kept = _share(layer, sides) if tensor.ndim > 1 else 1 - len(sides["out"]) / tensor.shape[0]
                    saved += tensor.numel() * (1 - kept)
        return round(self._total_parameters - saved, 3)


def _share(layer: nn.Module, sides: Mapping[str, set[int]]) -> float:
    """The share of a layer's weight that remains."""
    if isinstance(layer, nn.Linear):
        widths = {"out": layer.out_features, "in": layer.in_features}
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d):
        widths = {"out": layer.out_channels, "in": layer.in_channels}
    else:
        weight = next((p for p in layer._parameters.values() if p is not None and p.ndim), None)
        widths = {"out": 1 if weight is None else weight.shape[0], "in": 1}
    return math.prod(1 - len(sides[side]) / widths[side] for side in ("out", "in"))
