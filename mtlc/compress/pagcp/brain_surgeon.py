"""Orders channels by what a layer's outputs lose without them, the others making up for it: the optimal brain surgeon.

Hassibi, Stork: "Second order derivatives for network pruning: Optimal Brain Surgeon", NIPS 1992, for the least squares
of a layer's outputs. With W the weights by input channel (channels, outputs) and H the second moments of the inputs::

    harm of q   =  |W_q|² / H⁻¹_qq                    what the outputs lose, summed over layers and experts
    W          −=  k W_q,   k = H⁻¹_:q / H⁻¹_qq       the others make up for it; W_q becomes 0
    H⁻¹        −=  k H⁻¹_q:                           the inverse without q

Channels go one by one, the least harmful first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_PANEL = 64  # channels that go before the matrices are brought up to date
_LEAST = 1e-30  # rounding may leave a diagonal of an inverse at or below zero


def removal_order(weights: Sequence[Tensor], inverses: Sequence[Tensor], width: int = 1) -> list[int]:
    """The channels from the first to remove to the last.

    Each layer that reads them has `weights` (experts or 1, channels · width, outputs) and `inverses` (experts or 1,
    channels · width, channels · width) in double; a channel is `width` rows side by side, which go at once.
    """
    return _single(weights, inverses) if width == 1 else _blocks(weights, inverses, width)


def _single(weights: Sequence[Tensor], inverses: Sequence[Tensor]) -> list[int]:
    names, order = torch.arange(weights[0].shape[1]), list[int]()
    layers = [_Layer(w @ w.mT, inverse) for w, inverse in zip(weights, inverses, strict=True)]
    while len(names):
        present = torch.ones(len(names), dtype=torch.bool)
        for layer in layers:
            layer.begin(min(_PANEL, len(names)))
        for _ in range(min(_PANEL, len(names))):
            harm = torch.stack([layer.harm() for layer in layers]).sum(0).masked_fill(~present, torch.inf)
            channel = int(harm.argmin())
            for layer in layers:
                layer.remove(channel)
            present[channel] = False
            order.append(int(names[channel]))
        names = names[present]
        for layer in layers:
            layer.end(present.nonzero()[:, 0])
    return order


class _Layer:
    """W and H⁻¹ of one layer, of which W is only asked for as G = W Wᵀ, whose diagonal is |W_q|².

    Without q, G −= k aᵀ + a kᵀ with a = G_:q − ½ G_qq k. To change whole matrices for every channel would take memory
    bandwidth only. So the changes of a panel of channels are put aside, one column each, and made at once as a product
    of matrices; in between only the diagonals are kept up to date, and the column that is asked for.
    """

    def __init__(self, gram: Tensor, inverse: Tensor) -> None:
        self._gram, self._inverse = gram, inverse
        self._of_gram, self._of_inverse = (m.diagonal(0, 1, 2).clone() for m in (gram, inverse))

    def begin(self, panel: int) -> None:
        shape = (*self._gram.shape[:2], panel)
        self._k, self._a, self._h = (self._gram.new_empty(shape) for _ in range(3))
        self._gone = 0

    def harm(self) -> Tensor:
        """(channels,)"""
        return (self._of_gram.clamp_min(0) / self._of_inverse.clamp_min(_LEAST)).sum(0)

    def remove(self, channel: int) -> None:
        done = self._gone
        k, a, h = (m[:, :, :done] for m in (self._k, self._a, self._h))
        row_k, row_a = k[:, channel, :, None], a[:, channel, :, None]
        column = self._inverse[:, :, channel] - (h @ row_k)[:, :, 0]
        gram = self._gram[:, :, channel] - (k @ row_a + a @ row_k)[:, :, 0]
        share = column / column[:, channel, None]
        change = gram - 0.5 * gram[:, channel, None] * share
        self._of_inverse -= column * share
        self._of_gram -= 2 * share * change
        self._k[:, :, done], self._a[:, :, done], self._h[:, :, done] = share, change, column
        self._gone += 1

    def end(self, present: Tensor) -> None:
        """Bring the matrices up to date; only the `present` channels are left."""
        k, a, h = (m[:, present, : self._gone] for m in (self._k, self._a, self._h))
        self._inverse = self._inverse[:, present][:, :, present] - h @ k.mT
        self._gram = self._gram[:, present][:, :, present] - k @ a.mT - a @ k.mT
        self._of_gram, self._of_inverse = (m.diagonal(0, 1, 2).clone() for m in (self._gram, self._inverse))


def _blocks(weights: Sequence[Tensor], inverses: Sequence[Tensor], width: int) -> list[int]:
    """The same where a channel is a block of rows, such as those of an attention head: there are few."""
    weights, inverses = [w.clone() for w in weights], [i.clone() for i in inverses]
    present, order = list(range(weights[0].shape[1] // width)), list[int]()
    while present:
        harm = torch.stack([_harm(w, i, present, width) for w, i in zip(weights, inverses, strict=True)]).sum(0)
        channel = present[int(harm.argmin())]
        rows = slice(channel * width, (channel + 1) * width)
        for weight, inverse in zip(weights, inverses, strict=True):
            share = torch.linalg.solve(inverse[:, rows, rows], inverse[:, rows]).mT  # (experts, channels, width)
            weight -= share @ weight[:, rows]
            inverse -= share @ inverse[:, rows]
        order.append(channel)
        present.remove(channel)
    return order


def _harm(weight: Tensor, inverse: Tensor, present: Sequence[int], width: int) -> Tensor:
    """tr(W_qᵀ (H⁻¹_qq)⁻¹ W_q) of each of the `present` channels: (channels,)."""
    blocks = inverse.unflatten(1, (-1, width)).unflatten(3, (-1, width)).diagonal(0, 1, 3)  # (experts, width, width, C)
    rows = weight.unflatten(1, (-1, width))[:, present]  # (experts, present, width, outputs)
    result: Tensor = (rows * torch.linalg.solve(blocks.movedim(3, 1)[:, present], rows)).sum((0, 2, 3))
    return result
