"""Layers that are made plain ones compute what they did, and their replay is refused where it does not fit."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn

from mtlc.errors import UserError
from mtlc.program.unpacking import SeparateAttention, replay, unpack


def attention(**settings) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    made = nn.MultiheadAttention(16, 4, **settings)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made.eval()


QUERY, KEY = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
CAUSAL = torch.ones(5, 7, dtype=torch.bool).triu(1)
PADDING = torch.tensor([[False] * 7, [False] * 4 + [True] * 3])


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(
    "named",
    [
        {}, {"attn_mask": CAUSAL}, {"attn_mask": torch.randn(5, 7)}, {"key_padding_mask": PADDING},
        {"attn_mask": CAUSAL.float(), "key_padding_mask": PADDING.float()},
        {"attn_mask": CAUSAL.expand(8, 5, 7)},
    ],
)  # fmt: skip
def test_separate_attention_is_the_packed_one(named, need_weights):
    packed = attention(batch_first=True)
    with torch.no_grad():
        one = packed(QUERY, KEY, KEY, need_weights=need_weights, **named)
        other = SeparateAttention(packed)(QUERY, KEY, KEY, need_weights=need_weights, **named)
    assert torch.allclose(one[0], other[0], atol=1e-5)
    assert (one[1] is None) == (other[1] is None) == (not need_weights)
    if need_weights:
        assert torch.allclose(one[1], other[1], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "sides"),
    [
        ({}, (QUERY.transpose(0, 1), KEY.transpose(0, 1), KEY.transpose(0, 1))),
        ({"batch_first": True}, (QUERY[0], KEY[0], KEY[0])),
        ({"batch_first": True, "bias": False}, (QUERY, KEY, KEY)),
        ({"batch_first": True, "kdim": 6, "vdim": 3}, (QUERY, torch.randn(2, 7, 6), torch.randn(2, 7, 3))),
    ],
)
def test_other_shapes(settings, sides):
    packed = attention(**settings)
    with torch.no_grad():
        one, other = (
            packed(*sides, average_attn_weights=False),
            SeparateAttention(packed)(*sides, average_attn_weights=False),
        )
    for a, b in zip(one, other, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16))
        self.old = nn.utils.spectral_norm(nn.Linear(16, 16))
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(self.old(self.spectral(self.normed(x))))


def test_a_network_is_unpacked_once_and_replayed():
    net = Net().eval()
    copied = copy.deepcopy(net)
    expected = net(QUERY)
    step = unpack(net)
    assert step == {
        "kind": "unpack",
        "folded": [["normed", "weight"], ["spectral", "weight"], ["old", "weight"]],
        "attention": ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn"],
    }
    assert torch.allclose(net(QUERY), expected, atol=1e-5)
    assert torch.allclose(copied(QUERY), expected, atol=1e-5)  # which has classes of torch's making in common
    assert unpack(net) is None
    assert not any("parametrizations" in name or "weight_orig" in name for name in net.state_dict())
    again = Net().eval()
    replay(again, json.loads(json.dumps(step)))
    assert set(again.state_dict()) == set(net.state_dict())
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(QUERY), net(QUERY))
    again.train()(QUERY).sum().backward()
    assert again.encoder.layers[0].self_attn.q_proj.weight.grad is not None


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"folded": [["nothing", "weight"]]}, "the surgery unpacks 'nothing', which is no layer of the network"),
        (
            {"folded": [["encoder", "weight"]]},
            "the surgery folds 'weight' of 'encoder', which is not computed from others",
        ),
        ({"attention": ["encoder"]}, "the surgery unpacks 'encoder', which is no nn.MultiheadAttention"),
    ],
)
def test_a_damaged_step_is_one_line(step, message):
    net = Net().eval()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(UserError, match=message):
        replay(net, step)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))


def test_a_subclass_is_left_as_it_is():
    class Other(nn.MultiheadAttention):
        pass

    assert unpack(nn.ModuleList([Other(16, 2), nn.MultiheadAttention(16, 2, add_bias_kv=True)])) is None
