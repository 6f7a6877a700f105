"""The order of channels against least squares that are solved anew for every channel that could go next."""

from __future__ import annotations

import pytest
import torch

from mtlc.compress.pagcp import brain_surgeon
from mtlc.compress.pagcp.brain_surgeon import removal_order


def lost(weight, moment, gone):
    """What the outputs W·x lose without the inputs `gone`, the others making up for them: summed squares."""
    kept = [i for i in range(len(moment)) if i not in gone]
    left = moment[gone][:, gone]
    if kept:
        left = left - moment[gone][:, kept] @ torch.linalg.solve(moment[kept][:, kept], moment[kept][:, gone])
    return float((weight[gone] * (left @ weight[gone])).sum())


def greedy(weights, moments, width):
    """Each time the channel without which all layers and experts lose least."""
    channels, order = len(weights[0][0]) // width, []
    while len(order) < channels:
        left = [c for c in range(channels) if c not in order]
        harm = {}
        for channel in left:
            rows = [c * width + i for c in (*order, channel) for i in range(width)]
            pairs = [pair for one in zip(weights, moments, strict=True) for pair in zip(*one, strict=True)]
            harm[channel] = sum(lost(weight, moment, rows) for weight, moment in pairs)
        order.append(min(harm, key=harm.__getitem__))
    return order


def layers(seed, channels, width, experts, count):
    generator = torch.Generator().manual_seed(seed)
    rows = channels * width
    mixed = torch.randn(count, experts, 3 * rows, rows, generator=generator, dtype=torch.float64)
    moments = [x.mT @ x for x in mixed]
    weights = [torch.randn(experts, rows, 2 * i + 3, generator=generator, dtype=torch.float64) for i in range(count)]
    return weights, moments


@pytest.mark.parametrize("panel", [1, 4, 64])
@pytest.mark.parametrize(
    ("channels", "width", "experts", "count"), [(1, 1, 1, 1), (9, 1, 1, 1), (9, 1, 1, 2), (7, 1, 3, 1), (4, 3, 1, 2)]
)
def test_the_least_harmful_goes_first(monkeypatch, channels, width, experts, count, panel):
    """Also where what others make up for is put aside for a few channels, or all of them."""
    monkeypatch.setattr(brain_surgeon, "_PANEL", panel)
    for seed in range(4):
        weights, moments = layers(seed, channels, width, experts, count)
        before = [w.clone() for w in weights]
        found = removal_order(weights, [torch.linalg.inv(m) for m in moments], width)
        assert found == greedy(weights, moments, width)
        assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))


def test_a_copy_of_another_channel_goes_first_and_one_of_them_stays():
    weights, moments = layers(0, 6, 1, 1, 1)
    moments[0][:, 4], moments[0][:, :, 4] = moments[0][:, 1], moments[0][:, :, 1]  # input 4 is input 1
    moments[0][:, 4, 4] = moments[0][:, 1, 1]
    moments[0] += 1e-9 * torch.eye(6, dtype=torch.float64)
    order = removal_order(weights, [torch.linalg.inv(m) for m in moments])
    assert order[0] in (1, 4)
    assert {1, 4} - {order[0]} <= set(order[2:])


def test_a_channel_that_is_never_read_goes_first():
    weights, moments = layers(1, 70, 1, 1, 1)
    weights[0][:, 33] = 0
    moments[0] = torch.eye(70, dtype=torch.float64)[None]
    norms = weights[0][0].square().sum(1)
    found = removal_order(weights, [torch.linalg.inv(m) for m in moments])
    assert found[0] == 33
    assert found == norms.argsort(stable=True).tolist()  # without correlation by the weights alone
