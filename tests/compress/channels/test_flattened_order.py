"""The order in which linear layers read a flattened map: what is cut is what the channels were, not its neighbours."""

from __future__ import annotations

import copy

import pytest
import torch
from testkit.tiny_networks import random_norms
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.compress.channels.slicing import sliced
from mtlc.program.surgery import replay

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


class Flattened(nn.Module):
    """image (N, 3, 8, 8) ── conv 6, 4×4 ──┬── map (6, 4, 4) ── order ── norm of 96 ── hidden 8 ── head 2
    └── again 6 ──┘
    """

    def __init__(self, order: tuple[int, ...], norm: str = "none", turned: bool = False) -> None:
        super().__init__()
        self.conv, self.again = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 1, 1)
        self.slope = nn.PReLU(6)
        self.norm = {"none": nn.Identity(), "batch": nn.BatchNorm1d(96), "layer": nn.LayerNorm(96)}[norm]
        self.hidden, self.head = nn.Linear(96, 8), nn.Linear(8, 2)
        self.order, self.turned = order, turned

    def forward(self, image: Tensor) -> Tensor:
        x = self.slope(self.conv(image))
        x = self.slope(x + self.again(x))
        x = x.permute(0, *self.order).flatten(1)
        return self.head(F.relu(self.hidden(self.norm(x.flip(1) if self.turned else x))))


def groups_of(module: nn.Module) -> ChannelGroups:
    return ChannelGroups(module, (IMAGE,))


def without(module: Flattened, channels: list[int]) -> Tensor:
    """The output with the channels of the map at zero."""
    masked = copy.deepcopy(module)
    with torch.no_grad():
        for conv in (masked.conv, masked.again):
            conv.weight[channels] = 0
            conv.bias[channels] = 0
        return masked(IMAGE)


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize(
    ("order", "features"),
    [
        ((1, 2, 3), range(32, 48)),  # (C, H, W): channel 2 is 16 features in a row
        ((2, 3, 1), range(2, 96, 6)),  # (H, W, C)
        ((3, 2, 1), range(2, 96, 6)),  # (W, H, C), as the networks of facenet-pytorch have it
    ],
)
def test_what_is_cut_is_what_the_channels_were(order, features, norm):
    torch.manual_seed(0)
    module = random_norms(Flattened(order, norm)).eval()
    if norm == "batch":  # or a channel of zeros is not nothing
        nn.init.zeros_(module.norm.bias), nn.init.zeros_(module.norm.running_mean)
    groups = groups_of(module)
    unit = next(unit for unit in groups.units if "conv" in {m.layer for m in unit.producers})
    assert next(m for m in unit.consumers if m.layer == "hidden").of([2]) == list(features)
    expected, again = without(module, [1, 2]), copy.deepcopy(module)
    pruned = copy.deepcopy(module)
    steps = groups_of(pruned).prune({unit.name: [1, 2]})
    replay(again, (IMAGE,), steps)
    for made in (pruned, again):
        assert made.hidden.weight.shape == (8, 64)
        assert torch.allclose(made(IMAGE), expected, atol=1e-6)


@pytest.mark.parametrize("order", [(1, 2, 3), (2, 3, 1)])
def test_a_norm_over_the_features_hides_no_order(order):
    unit = next(u for u in groups_of(Flattened(order, "layer").eval()).units if u.name in ("again", "conv"))
    features = list(range(16) if order == (1, 2, 3) else range(0, 96, 6))
    assert {m.layer: m.of([0]) for m in unit.members if m.layer in ("norm", "hidden")} == {
        "norm": features, "hidden": features,
    }  # fmt: skip


def test_a_layer_that_takes_its_input_by_name_is_looked_at_too():
    class Named(Flattened):
        def forward(self, image: Tensor) -> Tensor:
            x = self.again(self.slope(self.conv(image))).permute(0, *self.order).flatten(1)
            return self.head(F.relu(self.hidden(input=x)))

    unit = next(u for u in groups_of(Named((2, 3, 1)).eval()).units if u.name == "again")
    assert next(m for m in unit.consumers if m.layer == "hidden").of([2]) == list(range(2, 96, 6))


@pytest.mark.parametrize(("order", "turned"), [((2, 1, 3), False), ((1, 2, 3), True)])
def test_any_other_order_is_followed_too(order, turned):
    groups = groups_of(Flattened(order, turned=turned).eval())
    assert [unit.name for unit in groups.units] == ["again", "hidden"]
    module = Flattened(order, turned=turned).eval()
    units = {unit.name: unit for unit in groups_of(module).units}
    with torch.no_grad(), sliced(module, units, {"again": [1, 4], "hidden": [0]}):
        expected = module(IMAGE)
    groups_of(module).prune({"again": [1, 4], "hidden": [0]})
    assert torch.equal(module(IMAGE), expected)


def test_layers_run_as_before(monkeypatch):
    """No hook stays behind."""
    module = Flattened((2, 3, 1)).eval()
    before = module(IMAGE)
    groups_of(module)
    assert torch.equal(module(IMAGE), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
