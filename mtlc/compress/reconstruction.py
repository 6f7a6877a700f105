"""Making up for removed channels in the weights that read them, in closed form.

A consumer of a unit computes W·x. Without the channels R its best substitute W'·x_K, in the least squares over the
calibration split, adds to the kept columns what x_K tells of x_R: W'_K = W_K + W_R·A, A = E[x_R x_Kᵀ](E[x_K x_Kᵀ])⁻¹. The
same statistics rank the channels: the optimal brain surgeon (Hassibi, Stork, NIPS 1992) applied to a layer's outputs
removes, one after the other, the channel whose loss the others make up for best. Spatial taps share A, so for a k×k
convolution the substitute is the best one that does not mix positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlc.compress.units import Member, Unit

_RIDGE = 1e-3  # of the mean energy: keeps dead and duplicate channels from blowing up the solution


class Reconstruction:
    """Second moments of the consumers' inputs on one network, and what follows from them.

    A consumer whose inputs are not one per channel (a linear layer behind a flattened map) is left without.
    """

    def __init__(self, network: nn.Module, units: Mapping[str, Unit], runs: Iterable[Any]) -> None:
        """`runs` does the forwards: each item drawn from it runs the network on one calibration batch."""
        self._network = network
        layers = {m.layer for unit in units.values() for m in unit.consumers if _one_to_one(m)}
        self._moments: dict[str, Tensor] = {}
        hooks = [network.get_submodule(name).register_forward_pre_hook(self._adder(name)) for name in sorted(layers)]
        try:
            for _ in runs:
                pass
        finally:
            for hook in hooks:
                hook.remove()

    def _adder(self, name: str) -> Any:
        def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach()
            x = x.transpose(0, 1).flatten(1) if _is_image(layer) else x.flatten(0, -2).T
            moment = (x @ x.T).double()
            self._moments[name] = self._moments[name] + moment if name in self._moments else moment

        return add

    def weight(self, member: Member, weight: Tensor, gone: Sequence[int]) -> Tensor:
        """The consumer's weight (out, in, …) with the unit's `gone` channels zero and the others making up for them."""
        result = weight.clone()
        columns = _input_dimension(self._network.get_submodule(member.layer))
        removed = torch.tensor(member.of(gone), dtype=torch.long)
        if member.layer in self._moments and 0 < len(gone) < len(member.indices) and _one_to_one(member):
            lost = set(gone)
            kept = torch.tensor(member.of(c for c in range(len(member.indices)) if c not in lost), dtype=torch.long)
            moment = _regular(self._moments[member.layer])
            told = torch.linalg.solve(moment[kept][:, kept], moment[kept][:, removed])  # (kept, removed)
            moved = torch.tensordot(weight.index_select(columns, removed).double(), told.T, dims=([columns], [0]))
            moved = moved.movedim(-1, columns).to(weight.dtype)
            result.index_add_(columns, kept, moved)
        return result.index_fill_(columns, removed, 0.0)

    def order(self, unit: Unit) -> list[int] | None:
        """The unit's channels from the first to remove to the last, or None where a consumer has no statistics."""
        consumers = [m for m in unit.consumers if m.layer in self._moments and _one_to_one(m)]
        if len(consumers) != len(unit.consumers):
            return None
        inverses, weights = [], []
        for member in consumers:
            layer = self._network.get_submodule(member.layer)
            columns = torch.tensor(member.of(range(unit.channels)), dtype=torch.long)
            inverses.append(torch.linalg.inv(_regular(self._moments[member.layer])[columns][:, columns]))
            weight = layer.weight.detach().double()  # type: ignore[operator]
            weights.append(weight.movedim(_input_dimension(layer), 0)[columns].flatten(1))  # (channels, out·taps)
        present, order = list(range(unit.channels)), []
        while present:
            harm = sum(
                w[present].pow(2).sum(1) / inverse.diagonal()[present].clamp_min(1e-30)
                for w, inverse in zip(weights, inverses, strict=True)
            )
            assert isinstance(harm, Tensor)
            channel = present[int(harm.argmin())]
            for weight, inverse in zip(weights, inverses, strict=True):
                pivot, row = inverse[channel, channel].clone(), inverse[channel].clone()
                weight -= torch.outer(row / pivot, weight[channel].clone())
                inverse -= torch.outer(row, row) / pivot
            order.append(channel)
            present.remove(channel)
        return order


def _regular(moment: Tensor) -> Tensor:
    ridge = _RIDGE * float(moment.diagonal().mean()) + 1e-12
    return moment + ridge * torch.eye(len(moment), dtype=moment.dtype)


def _one_to_one(member: Member) -> bool:
    return all(len(indices) == 1 for indices in member.indices)


def _is_image(layer: nn.Module) -> bool:
    return not isinstance(layer, nn.Linear)


def _input_dimension(layer: nn.Module) -> int:
    return 0 if isinstance(layer, nn.ConvTranspose2d) else 1
