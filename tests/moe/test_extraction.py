"""Taking experts out: what stays exactly the same, what a merge is, and replaying it."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit import foreign_network, tiny_networks

from mtlc.errors import UserError
from mtlc.moe.experts import Experts
from mtlc.moe.extraction import keep_experts
from mtlc.moe.layers import KeptExperts, MoeDeclaration, MoeLayer, moe_layers, observing
from mtlc.moe.merging import merged
from mtlc.program import surgery

FIRST, SECOND = "backbone.blocks.1.mlp", "backbone.blocks.3.mlp"
IMAGE = tiny_networks.images(3, 16, 7)


def outputs(network, image=IMAGE):
    with torch.no_grad():
        return network(image)


def cut(network, layers):
    made = copy.deepcopy(network)
    with torch.no_grad():
        keep_experts(made, layers)
    return made


def used(network, path: str, image=IMAGE) -> list[int]:
    """The experts of a layer that any token of the images goes to, for any task."""
    with torch.no_grad(), observing(moe_layers(network)) as routed:
        network(image)
    return (routed.places(path) > 0).nonzero().flatten().tolist()


@pytest.mark.parametrize("path", [FIRST, SECOND])
def test_experts_that_no_token_goes_to_change_no_bit(path):
    network = tiny_networks.moe(experts=20)
    with torch.no_grad():  # of 18 other scores two are as good as always larger
        network.get_submodule(path).router.weight[:, :, [3, 7]] = 0
    kept = used(network, path)
    assert 2 <= len(kept) <= 18
    small, before = cut(network, {path: {"kept": kept}}), outputs(network)
    assert all(torch.equal(outputs(small)[task], before[task]) for task in before)
    assert sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in small.parameters()) == (
        (20 - len(kept)) * (2 * 12 * 12 + 24)
    )


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**16), st.sets(st.integers(0, 5), min_size=1, max_size=5))
def test_a_layers_result_is_the_sum_over_the_kept_experts(seed, kept):
    """Whatever is dropped: every token of no dropped expert keeps its bits, every other loses exactly that part."""
    network = tiny_networks.moe()
    layer = network.backbone.blocks[1].mlp
    x, task = torch.randn(1, 40, 12, generator=torch.Generator().manual_seed(seed)), torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        before, (score, index) = layer(x, task, None), layer.router(x, task, None)
        hit = ~torch.isin(index[0], torch.tensor(sorted(kept)))
        gone = layer.experts(x[0], index[0], score[0] * hit)
        after = cut(network, {FIRST: {"kept": sorted(kept)}}).backbone.blocks[1].mlp(x, task, None)
    whole = ~hit.any(1)
    assert torch.allclose(after[0][whole], before[0][whole], rtol=0, atol=1e-6)
    assert torch.allclose(after[0], before[0] - gone, rtol=0, atol=1e-5)


def test_rerouted_tokens_take_the_next_best_that_is_left():
    network = tiny_networks.moe()
    layer, task = network.backbone.blocks[1].mlp, torch.zeros(1, dtype=torch.long)
    x = torch.randn(1, 40, 12, generator=torch.Generator().manual_seed(0))
    small = cut(network, {FIRST: {"kept": [1, 3, 5], "reroute": True}}).backbone.blocks[1].mlp
    with torch.no_grad():
        all_scores = (x @ layer.router.weight[0]).softmax(-1)
        score, index = small.router(x, task, None)
    assert set(index.unique().tolist()) == {1, 3, 5}
    best = all_scores[..., [1, 3, 5]].sort(-1, descending=True).values[..., :2]
    assert torch.equal(score, best)  # of the softmax over all six


def test_the_router_keeps_its_columns():
    network = tiny_networks.moe()
    small = cut(network, {FIRST: {"kept": [0, 4]}})
    router = small.backbone.blocks[1].mlp.router
    assert torch.equal(router.weight, network.backbone.blocks[1].mlp.router.weight)
    assert router.kept.tolist() == [True, False, False, False, True, False]
    assert moe_layers(small)[0].position.tolist() == [0, -1, -1, -1, 1, -1]
    assert moe_layers(small)[0].inner.count == 2


def test_extraction_from_an_extracted_network_goes_by_the_old_numbers():
    network = tiny_networks.moe()
    twice = cut(cut(network, {FIRST: {"kept": [0, 2, 4]}}), {FIRST: {"kept": [2, 4]}})
    once = cut(network, {FIRST: {"kept": [2, 4]}})
    assert tiny_networks.same_state(twice, once)
    assert all(torch.equal(outputs(twice)[t], outputs(once)[t]) for t in ("depth", "semseg"))
    with pytest.raises(UserError, match="expert 0 is not there"):
        cut(once, {FIRST: {"kept": [0, 2]}})


def test_merged_experts_stay_one_in_a_further_extraction():
    network = cut(tiny_networks.moe(), {FIRST: {"groups": [[0, 3], [1, 2], [5, 4]]}})
    small = cut(network, {FIRST: {"kept": [0, 1, 3]}})
    assert moe_layers(small)[0].position.tolist() == [0, 1, -1, 0, -1, -1]
    assert moe_layers(small)[0].rows == 2


@pytest.mark.parametrize("implementation", ["batched_mm", "eager"])
def test_a_block_of_transformers_keeps_its_bits_too(implementation):
    network = foreign_network.mixtral(implementation, unused=(1, 4))
    assert used(network, "sparse") == [0, 2, 3]
    small = cut(network, {"sparse": {"kept": [0, 2, 3]}})
    assert (small.sparse.experts.inner.num_experts, small.sparse.gate.num_experts) == (3, 5)
    before, after = outputs(network), outputs(small)
    assert all(torch.allclose(after[t], before[t], rtol=0, atol=1e-6) for t in before)


def test_a_block_of_transformers_without_an_expert_gives_the_others():
    network = foreign_network.mixtral()
    small = cut(network, {"sparse": {"kept": [1, 2, 4]}})
    x = torch.randn(30, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        _, weight, index = network.sparse.gate(x)
        kept = torch.isin(index, torch.tensor([1, 2, 4]))
        wanted = network.sparse.experts(x, index, weight * kept)
        assert torch.allclose(small.sparse(x[None])[0], wanted, rtol=0, atol=1e-5)
    assert not kept.all()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            {"backbone.blocks.0.mlp": {"kept": [0]}},
            "layer 'backbone.blocks.0.mlp': the network has no mixture of experts",
        ),
        ({FIRST: {"kept": []}}, "layer 'backbone.blocks.1.mlp': no expert would be left"),
        ({FIRST: {"kept": [0, 6]}}, "expert 6 is not there"),
        ({FIRST: {"kept": [0, -1]}}, "expert -1 is not there"),
        ({FIRST: {"groups": [[0, 1], [1]]}}, "expert 1 is not there, or is named twice"),
    ],
)
def test_plans_that_do_not_fit_are_refused(layers, message):
    with pytest.raises(UserError, match=message):
        cut(tiny_networks.moe(), layers)


def test_a_foreign_router_cannot_reroute():
    with pytest.raises(UserError, match="reroute needs mtlc's Router, not MixtralTopKRouter"):
        cut(foreign_network.mixtral(), {"sparse": {"kept": [0, 1], "reroute": True}})


def test_steps_replay():
    network = tiny_networks.moe()
    steps = [
        {"kind": "tasks", "tasks": ["semseg"]},
        {"kind": "experts", "layers": {FIRST: {"kept": [0, 1], "reroute": True}, SECOND: {"groups": [[0, 2], [5]]}}},
    ]
    made = copy.deepcopy(network)
    made.backbone.blocks[1].mlp.experts.fc1.weight.requires_grad_(False)
    surgery.replay(made, (IMAGE,), steps)
    assert made.tasks == ("semseg",)
    first, second = moe_layers(made)
    assert (first.present, first.router.reroute) == ([0, 1], True)
    assert (second.present, second.rows, second.position.tolist()) == ([0, 2, 5], 2, [0, -1, 0, -1, -1, 1])
    assert not first.inner.fc1.weight.requires_grad
    assert second.inner.fc1.weight.requires_grad


@pytest.mark.parametrize(
    "step",
    [
        {"kind": "experts"},
        {"kind": "experts", "layers": {FIRST: {"kept": ["a"]}}},
        {"kind": "experts", "layers": {FIRST: {"groups": 3}}},
        {"kind": "experts", "layers": [FIRST]},
        {"kind": "tasks", "tasks": ["nothing"]},
        {"kind": "tasks", "tasks": 3},
    ],
)
def test_damaged_steps_are_one_line(step):
    with pytest.raises(UserError, match=r"damaged, or of another network|is not there|has no task") as caught:
        surgery.replay(tiny_networks.moe(), (IMAGE,), [step])
    assert "\n" not in str(caught.value)


# ---- merging --------------------------------------------------------------------------------------------------------


def layer_of(experts: Experts) -> MoeLayer:
    holder = torch.nn.Module()
    holder.router, holder.experts, holder.top_k = torch.nn.Linear(1, 1), experts, 1
    return MoeLayer("a", holder, MoeDeclaration())


def test_experts_that_differ_by_the_order_of_their_neurons_merge_without_loss():
    torch.manual_seed(0)
    experts, order = Experts(3, 4, 8), torch.randperm(8)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_()
        experts.fc1.weight[2], experts.fc1.bias[2] = experts.fc1.weight[0][order], experts.fc1.bias[0][order]
        experts.fc2.weight[2], experts.fc2.bias[2] = experts.fc2.weight[0][:, order], experts.fc2.bias[0]
        groups, parameters = merged(layer_of(experts), [0, 1], [3, 1, 5])
    assert groups == [[0, 2], [1]]
    for name, value in parameters.items():
        assert torch.allclose(value, experts.get_parameter(name)[:2], atol=1e-6), name


def test_a_merged_expert_is_the_mean_weighted_by_use():
    """One neuron each: nothing to match, so the mean can be seen."""
    experts = Experts(3, 1, 1)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(torch.tensor([0.0, 10.0, 1.0]).view(-1, *[1] * (parameter.ndim - 1)).expand_as(parameter))
    groups, parameters = merged(layer_of(experts), [0, 1], [3, 7, 1])
    assert groups == [[0, 2], [1]]
    assert parameters["fc1.weight"].flatten().tolist() == [0.25, 10]
    assert parameters["fc2.bias"].flatten().tolist() == [0.25, 10]
    _, unused = merged(layer_of(experts), [0, 1], [3, 7, 0])
    assert unused["fc1.weight"].flatten().tolist() == [0, 10]
    _, nobody = merged(layer_of(experts), [0, 1], [0, 0, 0])
    assert nobody["fc1.weight"].flatten().tolist() == [0, 10]


def test_foreign_experts_do_not_merge():
    (layer,) = moe_layers(foreign_network.mixtral())
    with pytest.raises(
        UserError, match='handle = "merge" matches the neurons of mtlc\'s Experts, not of MixtralExperts'
    ):
        merged(layer, [0], [1] * 5)


def test_places_of_merged_experts_add_up():
    """A token that goes to two experts that became one gets both scores' worth of it."""
    experts = Experts(1, 2, 3)
    both = KeptExperts(experts, [0, 0, -1])
    x = torch.randn(4, 2)
    index, score = torch.tensor([[0, 1]]).expand(4, 2), torch.tensor([[0.5, 0.25]]).expand(4, 2)
    with torch.no_grad():
        one = experts(x, torch.zeros(4, 1, dtype=torch.long), torch.full((4, 1), 0.75))
        assert torch.allclose(both(x, index, score), one, atol=1e-6)
