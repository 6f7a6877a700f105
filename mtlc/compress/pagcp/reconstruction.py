"""Makes up for removed channels in the weights that read them, in closed form.

Where x_K are the channels kept and x_R those removed::

    x_K (kept)     --- W_K + W_R·A --+
                                     +--> W·x, nearly       A predicts x_R from x_K
    x_R (removed)  - - - W_R  (gone)-+

A consumer of a unit computes W·x. Without the channels R its best substitute W'·x_K, in the least squares over the
calibration split, adds to the kept columns what x_K tells of x_R: W'_K = W_K + W_R·A, A = E[x_R x_Kᵀ](E[x_K x_Kᵀ])⁻¹.
The same statistics rank the channels (`mtlc.compress.pagcp.brain_surgeon`). Spatial taps share A, so for a k×k
convolution the substitute is the best one that does not mix positions. An attention head is a block of channels
that goes at once. Experts share the channels but nothing else: each has an A of its own, from the tokens that it is
sent, each weighted by its score; the harm of a channel is the sum over all experts of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.compress.channels.unit import Member, Unit
from mtlc.compress.pagcp.brain_surgeon import removal_order
from mtlc.moe.experts import Experts
from mtlc.program.surgery import input_dimension

_RIDGE = 1e-3  # of the mean energy: keeps dead and duplicate channels from blowing up the solution


class Reconstruction:
    """Second moments of the consumers' inputs on one network, and what follows from them.

    A consumer whose inputs are not one per channel (a linear layer behind a flattened map) is left without, unless a
    channel is an attention head.
    """

    def __init__(self, network: nn.Module, units: Mapping[str, Unit], runs: Iterable[Any]) -> None:
        """`runs` does the forwards: each item drawn from it runs the network on one calibration batch."""
        self._network = network
        self._moments: dict[str, Tensor] = {}  # by layer: (experts or 1, inputs, inputs)
        self._blocks = {m.layer for u in units.values() if u.kind == "heads" for m in u.consumers}
        hooks = []
        watched: dict[str, Callable[..., None]] = {}
        for unit in units.values():
            for member in unit.consumers:
                if unit.kind == "experts":
                    if isinstance(network.get_submodule(unit.name), Experts):
                        watched[unit.name] = self._expert_adder(member.layer)
                elif self._is_known(member):
                    watched[member.layer] = self._adder(member.layer)
        hooks = [network.get_submodule(name).register_forward_pre_hook(adder) for name, adder in watched.items()]
        try:
            for _ in runs:
                pass
        finally:
            for hook in hooks:
                hook.remove()

    def _is_known(self, member: Member) -> bool:
        return member.layer in self._blocks or all(len(indices) == 1 for indices in member.indices)

    def _adder(self, name: str) -> Callable[..., None]:
        def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach()
            x = x.flatten(0, -2).T if isinstance(layer, nn.Linear) else x.transpose(0, 1).flatten(1)
            # Channels by all positions of the batch. The sum runs over positions, not a mean: A is a ratio of moments,
            # so the count cancels. Batches are added in double, since the moments are inverted later.
            self._add(name, (x @ x.T)[None])

        return add

    def _expert_adder(self, name: str) -> Callable[..., None]:
        def add(experts: Experts, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
            x, index, score = inputs
            fc1, moments = experts.fc1, []
            # The input of fc2 passes no module's door: it is computed here from what the experts read. Scores multiply
            # the outputs of fc2, which is linear, so they may as well multiply its input; its bias plays no part.
            for expert in range(experts.count):
                token, place = torch.where(index == expert)
                hidden = F.gelu(F.linear(x[token], fc1.weight[expert], fc1.bias[expert])) * score[token, place, None]
                moments.append(hidden.T @ hidden)
            self._add(name, torch.stack(moments))

        return add

    def _add(self, name: str, moment: Tensor) -> None:
        # Equations are solved on the CPU and in double, which not every device has.
        moment = moment.cpu().double()
        self._moments[name] = self._moments[name] + moment if name in self._moments else moment

    def weight(self, member: Member, weight: Tensor, gone: Sequence[int]) -> Tensor:
        """The consumer's weight with the unit's `gone` channels zero and the others making up for them; same shape."""
        inputs = input_dimension(self._network.get_submodule(member.layer))
        removed = torch.tensor(member.of(gone), dtype=torch.long)
        # Without statistics, or with nothing left to make up, what remains is plain zeroing.
        if member.layer not in self._moments or not 0 < len(gone) < len(member.indices) or not self._is_known(member):
            return weight.index_fill(inputs, removed.to(weight.device), 0.0)
        lost = set(gone)
        kept = torch.tensor(member.of(c for c in range(len(member.indices)) if c not in lost), dtype=torch.long)
        # Only the unit's own kept channels make up for its removed ones: columns of other units, which may be in the
        # same layer, stay as they are. So units can be made up for in any order, and each apart from the others.
        moment = _regular(self._moments[member.layer])
        told = torch.linalg.solve(
            moment[:, kept][:, :, kept], moment[:, kept][:, :, removed]
        )  # (experts, kept, removed)
        matrix = _matrices(weight.cpu(), inputs)  # (experts, outputs · taps, inputs)
        # `told` is Aᵀ: E[x_K x_Kᵀ]⁻¹ E[x_K x_Rᵀ]. What goes is W_R·A, folded back to the weight's own shape.
        moved = matrix[:, :, removed].double() @ told.mT
        moved = moved.to(weight.dtype).reshape(*weight.movedim(inputs, -1).shape[:-1], len(kept)).movedim(-1, inputs)
        kept, removed, moved = (tensor.to(weight.device) for tensor in (kept, removed, moved))
        return weight.clone().index_add_(inputs, kept, moved).index_fill_(inputs, removed, 0.0)

    def order(self, unit: Unit) -> list[int] | None:
        """The unit's channels from the first to remove to the last, or None where a consumer has no statistics."""
        consumers = [m for m in unit.consumers if m.layer in self._moments and self._is_known(m)]
        if len(consumers) != len(unit.consumers):
            return None
        # Columns are put in the order of the unit's channels, each channel's `width` indices side by side: channel c is
        # rows c·width … (c+1)·width of everything below.
        width = len(consumers[0].indices[0])
        inverses, weights = [], []
        for member in consumers:
            layer = self._network.get_submodule(member.layer)
            columns = torch.tensor(member.of(range(unit.channels)), dtype=torch.long)
            inverses.append(torch.linalg.inv(_regular(self._moments[member.layer]))[:, columns][:, :, columns])
            weight = layer.weight.detach().cpu().double()  # type: ignore[operator]
            weights.append(_matrices(weight, input_dimension(layer)).mT[:, columns])  # (experts, channels, out·taps)
        return removal_order(weights, inverses, width)


def _matrices(weight: Tensor, inputs: int) -> Tensor:
    """A weight as (experts or 1, all else, inputs)."""
    last = weight.movedim(inputs, -1)
    return last if inputs == 2 else last.flatten(0, -2)[None]


def _regular(moment: Tensor) -> Tensor:
    """Moments (experts, C, C) that can be inverted.

    An expert that is sent no token has a tiny multiple of the unit matrix.
    """
    size = moment.shape[-1]
    ridge = _RIDGE * moment.diagonal(0, 1, 2).mean(1) + 1e-12
    return moment + ridge[:, None, None] * torch.eye(size, dtype=moment.dtype)
