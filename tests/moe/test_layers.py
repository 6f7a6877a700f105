"""Finding mixtures of experts, and what is observed of their routing."""

from __future__ import annotations

import pytest
import torch
from testkit import foreign_network, tiny_networks
from torch import nn

from mtlc.errors import UserError
from mtlc.moe.layers import KeptExperts, MoeDeclaration, Routed, declare, dropping, moe_layers, observing


class Odd(nn.Module):
    """A layer with names of its own: experts that scale, one row each."""

    def __init__(self) -> None:
        super().__init__()
        self.chooser = nn.Linear(2, 3)
        self.bank = Bank()
        self.choices = 2

    def forward(self, x):
        weight, index = self.chooser(x).softmax(-1).topk(self.choices)
        return self.bank(x, index, weight)


class Bank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.arange(12.0).view(3, 2, 2))

    def forward(self, x, index, weight):
        return (weight[..., None] * (self.matrix[index] @ x[:, None, :, None]).squeeze(-1)).sum(1)


def test_ours_are_found_in_order():
    found = moe_layers(tiny_networks.moe())
    assert [layer.path for layer in found] == ["backbone.blocks.1.mlp", "backbone.blocks.3.mlp"]
    assert [(layer.count, layer.top_k, layer.ours, layer.present) for layer in found] == [(6, 2, True, [*range(6)])] * 2
    assert found[0].parameters_per_expert() == 2 * 12 * 12 + 12 + 12
    assert found[0].macs_per_place() == 2 * 12 * 12


@pytest.mark.parametrize(
    ("block", "where"), [("mixtral", "MixtralSparseMoeBlock"), ("qwen3_moe", "Qwen3MoeSparseMoeBlock")]
)
def test_blocks_of_transformers_are_found_by_their_shape(block, where):
    if block == "mixtral":
        network = foreign_network.mixtral().sparse
    else:
        from transformers import Qwen3MoeConfig
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

        network = Qwen3MoeSparseMoeBlock(
            Qwen3MoeConfig(hidden_size=16, moe_intermediate_size=24, num_experts=5, num_experts_per_tok=2)
        )
    (layer,) = moe_layers(network)
    assert type(layer.module).__name__ == where
    assert (layer.path, layer.count, layer.top_k, layer.ours) == ("", 5, 2, False)
    assert layer.declaration == MoeDeclaration("gate", "experts", "top_k")


def test_names_of_ones_own_are_declared():
    odd = Odd()
    assert moe_layers(odd) == []
    declare(odd, "chooser", "bank", "choices")
    (layer,) = moe_layers(odd)
    assert (layer.count, layer.top_k, layer.parameters_per_expert()) == (3, 2, 4)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("choser", "bank", "choices"), "layer '': declared as a mixture of experts, but it has no submodule 'choser'"),
        (("chooser", "chooser", "choices"), "the parameters of 'chooser' must all have the experts as first dimension"),
        (("chooser", "bank", "top_k"), "neither it nor its 'chooser' has a number 'top_k'"),
    ],
)
def test_a_declaration_that_does_not_fit_is_an_error(names, message):
    odd = Odd()
    declare(odd, *names)
    with pytest.raises(UserError, match=message):
        moe_layers(odd)


def test_what_is_in_doubt_is_not_found():
    layer = tiny_networks.moe().backbone.blocks[1].mlp
    layer.gate = nn.Linear(2, 2)  # a router and a gate: which one?
    assert moe_layers(layer) == []
    listed = nn.Module()
    listed.gate, listed.experts, listed.top_k = nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)]), 1
    assert moe_layers(listed) == []


# Two calls of a layer of 4 experts, top-2: three tokens.
INDEX = (torch.tensor([[0, 1], [1, 2]]), torch.tensor([[1, -1]]))
SCORE = (torch.tensor([[0.5, 0.25], [0.5, 0.125]]), torch.tensor([[0.5, 0.125]]))


@pytest.fixture
def routed() -> Routed:
    made = Routed([type("L", (), {"path": "a", "count": 4})()])
    for index, score in zip(INDEX, SCORE, strict=True):
        made.add("a", index, score)
    return made


def test_shares_of_tokens_and_of_scores_by_hand(routed):
    assert routed.usage("a").tolist() == pytest.approx([1 / 3, 1, 1 / 3, 0])
    assert routed.places("a").tolist() == [1, 3, 1, 0]
    assert routed.empty("a") == 1
    # of 2.0 in all, the empty place has 0.125, expert 0 has 0.5 and expert 2 has 0.125
    assert routed.coverage("a", [1, 2]) == pytest.approx((2 - 0.5 - 0.125) / 2)
    assert routed.coverage("a", [0, 1, 2, 3]) == pytest.approx((2 - 0.125) / 2)
    assert routed.hit("a", [1, 2]) == pytest.approx(2 / 3)  # the first token's 0, and the empty place
    assert routed.hit("a", [0, 1, 2]) == pytest.approx(1 / 3)


def test_observing_sees_what_the_router_says_and_leaves_no_trace():
    network = tiny_networks.moe()
    layers, image = moe_layers(network), tiny_networks.images(2, 16, 1)
    seen = []
    handle = network.backbone.blocks[1].mlp.router.register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad(), observing(layers) as routed:
        network(image, ("depth",))
    handle.remove()
    ((score, index),) = seen
    assert torch.equal(routed.index(layers[0].path), index.flatten(0, 1))
    assert torch.equal(routed.score(layers[0].path), score.flatten(0, 1))
    assert len(routed.index(layers[1].path)) == 2 * 17
    assert not any(m._forward_pre_hooks for m in network.modules())


def test_a_router_that_gives_nan_is_named():
    network = tiny_networks.moe()
    network.backbone.blocks[3].mlp.router.weight.data[0, 0, 0] = float("nan")
    message = r"layer 'backbone\.blocks\.3\.mlp': its router gives scores that are NaN"
    with torch.no_grad(), observing(moe_layers(network)), pytest.raises(UserError, match=message):
        network(tiny_networks.images(1, 16, 1))


def test_experts_that_are_called_otherwise_are_named():
    network = foreign_network.mixtral().sparse
    layers, experts = moe_layers(network), network.experts
    x, index, weight = torch.zeros(2, 16), torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, 2)
    with observing(layers), pytest.raises(UserError, match=r"must be called with \(x \(N, D\), index"):
        experts(x, index, top_k_weights=weight)


@pytest.mark.parametrize("build", [tiny_networks.moe, foreign_network.mixtral])
def test_dropping_is_what_zero_scores_are(build):
    """Masked experts give the sum over the others, and afterwards all is as before."""
    network = build()
    layer = moe_layers(network)[0]
    kept, image = [0, 2], tiny_networks.images(2, 16, 1)
    mask = torch.tensor([expert in kept for expert in range(layer.count)])

    def silence(module, args):
        return args[0], args[1], args[2] * mask[args[1]]

    with torch.no_grad():
        before = network(image)
        with dropping([layer], {layer.path: kept}):
            masked = network(image)
        handle = layer.experts.register_forward_pre_hook(silence)
        wanted = network(image)
        handle.remove()
        after = network(image)
    assert all(torch.allclose(masked[t], wanted[t], atol=1e-6) for t in wanted)
    assert not any(torch.equal(masked[t], before[t]) for t in before)
    assert all(torch.equal(after[t], before[t]) for t in before)


def test_kept_experts_leave_places_empty_or_give_them_no_weight():
    ours = moe_layers(tiny_networks.moe())[0].experts
    foreign = foreign_network.mixtral().sparse.experts
    asked = torch.tensor([[3, 1], [0, 5]]), torch.tensor([[0.5, 0.25], [0.5, 0.25]])
    for inner, empty in ((ours, (-1, 0.25)), (foreign, (0, 0.0))):
        kept, seen = KeptExperts(inner, [0, -1, -1, 2, -1, 1]), []
        inner.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[1:]))
        kept(torch.zeros(2, 12 if inner is ours else 16), *asked)
        ((index, weight),) = seen
        assert index.tolist() == [[2, empty[0]], [0, 1]]
        assert weight.tolist() == [[0.5, empty[1]], [0.5, 0.25]]
