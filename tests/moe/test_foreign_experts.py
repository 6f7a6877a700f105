"""Taking experts out of modules that mtlc did not write: what goes with them, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from testkit.expert_traits import (
    Bank,
    Buffer,
    Counted,
    Elsewhere,
    Listed,
    NormAfter,
    OneBuffer,
    OtherLayer,
    Overwriting,
    Renormalised,
    Residual,
    SharedBank,
    Tied,
    WeightedInput,
    Width,
    WidthBuffer,
    WidthParameter,
    layer,
)
from torch import nn
from torch.nn import functional as F

from mtlc.errors import UserError
from mtlc.moe.extraction import keep_experts
from mtlc.moe.foreign_experts import Cut, find_cut, find_empty
from mtlc.moe.layers import dropping, moe_layers, observing, rows_left, sharing
from mtlc.program import surgery

KEPT = [0, 2, 3, 5, 7]
TOKENS = torch.randn(2, 30, 16, generator=torch.Generator().manual_seed(3))
CUTS = {
    Bank: Cut(),
    Buffer: Cut(tensors=("scale",)),
    OneBuffer: Cut(tensors=("scale",)),
    WidthBuffer: Cut(),
    Listed: Cut(tensors=("factors", "powers")),
    Width: Cut(),
    Counted: Cut(counts=("n",)),
    Overwriting: Cut("zeros"),
    WeightedInput: Cut("zeros"),
    Renormalised: Cut("zeros"),
    Residual: Cut(),
    Tied: Cut(),
}


def outputs(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network(TOKENS)


def cut(network: nn.Module, kept: list[int]) -> tuple[nn.Module, dict]:
    made = copy.deepcopy(network)
    return made, keep_experts(made, {one.path: {"kept": kept} for one in moe_layers(network)})


def without_the_parts_of_the_others(network: OtherLayer, kept: list[int]) -> torch.Tensor:
    """The formula of `Bank`, written for each kind of weight, over the places of the experts that are kept."""
    bank, flat = network.experts, TOKENS.flatten(0, 1)
    with torch.no_grad():
        weight, index = network.router(flat)
        wide = flat.unsqueeze(1).expand(-1, 2, -1)
        if isinstance(bank, WidthBuffer):
            wide = wide * bank.scale
        if isinstance(bank, WeightedInput):
            parts = bank.each(wide * weight[..., None], index)
        else:
            if isinstance(bank, Buffer):
                weight = weight * bank.scale[index]
            if isinstance(bank, Listed):
                weight = weight * (torch.tensor(bank.factors) * bank.powers)[index]
            if isinstance(bank, Tied):
                weight = weight * bank.first[index] ** 2
            parts = bank.each(wide, index) * weight[..., None]
        return (parts * torch.isin(index, torch.tensor(kept))[..., None]).sum(1).view_as(TOKENS)


@pytest.mark.parametrize("bank", list(CUTS), ids=lambda bank: bank.__name__)
def test_what_is_left_gives_the_sum_over_the_experts_that_stay(bank):
    network = layer(bank)
    small, plans = cut(network, KEPT)
    wanted = without_the_parts_of_the_others(network, KEPT)
    assert torch.allclose(outputs(small), wanted, rtol=0, atol=1e-5)
    assert not torch.allclose(outputs(network), wanted, rtol=0, atol=1e-2)
    with dropping(moe_layers(network), {"": KEPT}):
        assert torch.allclose(outputs(network), wanted, rtol=0, atol=1e-5)
    assert Cut.from_dict(plans[""]) == CUTS[bank]


@pytest.mark.parametrize("bank", list(CUTS), ids=lambda bank: bank.__name__)
def test_cutting_twice_is_cutting_once(bank):
    network = layer(bank)
    twice, _ = cut(cut(network, KEPT)[0], [2, 7])
    once, _ = cut(network, [2, 7])
    assert torch.equal(outputs(twice), outputs(once))
    assert {n: tuple(v.shape) for n, v in twice.state_dict().items()} == {
        n: tuple(v.shape) for n, v in once.state_dict().items()
    }


@pytest.mark.parametrize("bank", [Buffer, Counted, Renormalised, Listed], ids=lambda bank: bank.__name__)
def test_a_recorded_cut_replays_without_a_trial(bank, monkeypatch):
    network = layer(bank)
    small, plans = cut(network, KEPT)
    monkeypatch.setattr("mtlc.moe.extraction.find_cut", lambda *_: pytest.fail("tried again"))
    again = copy.deepcopy(network)
    surgery.replay(again, (TOKENS,), [{"kind": "experts", "layers": plans}])
    again.load_state_dict(small.state_dict())
    assert torch.equal(outputs(again), outputs(small))


def test_attributes_that_only_happen_to_be_as_large_stay():
    small, _ = cut(layer(Width), KEPT)
    assert (small.experts.inner.expert_dim, small.experts.inner.hidden_experts) == (8, 8)
    assert cut(layer(Counted), KEPT)[0].experts.inner.n == 5


def test_a_row_of_zeros_is_counted():
    (whole,) = moe_layers(layer(Renormalised))
    small, _ = cut(layer(Renormalised), KEPT)
    (left,) = moe_layers(small)
    assert left.rows == len(KEPT) + 1 == rows_left([whole], {"": KEPT})
    assert rows_left([left], {"": [0, 2]}) == 3
    assert rows_left([left], {"": KEPT}) == 6
    assert rows_left([whole], {"": list(range(8))}) == 8
    assert torch.equal(left.inner.w1[-1], torch.zeros(16, 24))
    assert left.position.tolist() == [0, -1, 1, 2, -1, 3, -1, 4]


def test_a_parameter_under_two_names_stays_one():
    small, _ = cut(layer(Tied), KEPT)
    bank = small.experts.inner
    assert bank.first is bank.second
    assert bank.first.tolist() == pytest.approx([0.5 + 1.5 * e / 7 for e in KEPT])


@pytest.mark.parametrize(
    ("bank", "why"),
    [
        (NormAfter, "their result is no sum over a token's places"),
        (WidthParameter, "their parameter 'gain' does not have one row for each of the 16 experts"),
        (Elsewhere, "with 5 of 8 they give another result"),
    ],
)
def test_what_no_cut_fits_is_refused(bank, why):
    network = layer(bank)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(UserError, match=f"layer '': experts cannot be taken out of its {bank.__name__}: {why}") as told:
        keep_experts(network, {"": {"kept": KEPT}})
    assert "\n" not in str(told.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_experts_that_raise_or_give_nothing_are_refused():
    class Raising(Bank):
        def forward(self, x, index, weight):
            raise KeyError("a key\nof two lines")

    class Silent(Bank):
        def forward(self, x, index, weight):
            return x * 0

    for bank, why in ((Raising, "they do not run on random tokens"), (Silent, "their result is 0")):
        with pytest.raises(UserError, match=why) as told:
            find_cut(bank(), [0], 2, "a")
        assert "\n" not in str(told.value)


def test_trials_leave_no_trace():
    network = layer(Buffer)
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    assert find_empty(network.experts, 2, "") == "weight"
    assert find_cut(network.experts, [1, 4], 2, "") == Cut(tensors=("scale",))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    network = layer(Buffer).to(dtype)
    small, plans = cut(network, KEPT)
    assert plans[""]["tensors"] == ["scale"]
    assert small.experts.inner.w1.dtype == dtype


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ({"empty": "nothing", "tensors": [], "counts": []}, "none that mtlc wrote"),
        ({"empty": "weight", "tensors": ["scale", 3], "counts": []}, "none that mtlc wrote"),
        ({"empty": "weight", "tensors": ["scales"], "counts": []}, "'scales' has no row for each of the 8 experts"),
        ({"empty": "weight", "tensors": ["a.b"], "counts": []}, "no attribute"),
        ({"empty": "weight", "tensors": [], "counts": ["scale"]}, "'scale' is not the number of the 8 experts"),
        ({"empty": "weight", "tensors": []}, "counts"),
    ],
)
def test_a_damaged_record_is_one_line(plan, why):
    step = {"kind": "experts", "layers": {"": {"kept": KEPT, **plan}}}
    with pytest.raises(UserError, match=f"damaged, or of another network: .*{why}") as told:
        surgery.replay(layer(Buffer), (TOKENS,), [step])
    assert "\n" not in str(told.value)


# ---- layers that share their experts --------------------------------------------------------------------------------


def test_layers_that_share_experts_are_observed_apart():
    network = layer(SharedBank)
    seen: dict[str, list] = {"a": [], "b": []}
    for name, calls in seen.items():
        getattr(network, name).router.register_forward_hook(lambda m, a, out, calls=calls: calls.append(out[1]))
    with observing(moe_layers(network)) as routed:
        outputs(network)
    for name, calls in seen.items():
        assert torch.equal(routed.index(name), calls[0])
    assert not torch.equal(routed.index("a"), routed.index("b"))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in (network.a, network.b, network.a.experts))
    with observing(moe_layers(network)) as routed, torch.no_grad():  # called by neither: it may be either's
        network.a.experts(TOKENS[0], torch.zeros(30, 2, dtype=torch.long), torch.ones(30, 2))
    assert routed.places("a").tolist() == routed.places("b").tolist() == [60] + [0] * 7


@pytest.mark.parametrize("shared", [Bank, Buffer, Renormalised], ids=lambda bank: bank.__name__)
def test_layers_that_share_experts_keep_what_either_keeps(shared):
    torch.manual_seed(0)
    network = SharedBank(shared).eval()
    with torch.no_grad():
        first = OtherLayer(network.a.experts)
        first.router = network.a.router
        between = TOKENS + without(first, [0, 2, 3], TOKENS)
        second = OtherLayer(network.b.experts)
        second.router = network.b.router
        wanted = without(second, [2, 5], between)
    small = copy.deepcopy(network)
    keep_experts(small, {"a": {"kept": [0, 2, 3]}, "b": {"kept": [2, 5]}})
    assert torch.allclose(outputs(small), wanted, rtol=0, atol=2e-5)
    assert small.a.experts.inner is small.b.experts.inner
    assert small.a.experts.position.tolist() == [0, -1, 1, 2, -1, -1, -1, -1]
    assert small.b.experts.position.tolist() == [-1, -1, 1, -1, -1, 3, -1, -1]
    assert rows_left(moe_layers(network), {"a": [0, 2, 3], "b": [2, 5]}) == moe_layers(small)[0].rows
    assert [len(together) for together in sharing(moe_layers(small))] == [2]


def without(network: OtherLayer, kept: list[int], tokens: torch.Tensor) -> torch.Tensor:
    """A layer's result without the parts of the experts that are not kept, token by token."""
    bank, result = network.experts, torch.zeros_like(tokens.flatten(0, 1))
    weight, index = network.router(tokens.flatten(0, 1))
    for number, token in enumerate(tokens.flatten(0, 1)):
        for share, expert in zip(weight[number], index[number].tolist(), strict=True):
            if expert in kept:
                part = F.gelu(token @ bank.w1[expert] + bank.b1[expert]) @ bank.w2[expert] + bank.b2[expert]
                result[number] += share * part * (bank.scale[expert] if isinstance(bank, Buffer) else 1)
    return result.view_as(tokens)


def test_a_layer_that_loses_none_keeps_all_of_the_experts_it_shares():
    network = layer(SharedBank)
    small = copy.deepcopy(network)
    keep_experts(small, {"a": {"kept": [0, 2]}})
    assert moe_layers(small)[1].present == list(range(8))
    assert torch.equal(small.b(TOKENS), network.b(TOKENS))
    assert moe_layers(small)[0].present == [0, 2]


def test_merging_shared_experts_otherwise_than_the_other_layer_is_refused():
    network = layer(SharedBank)
    plans = {"a": {"groups": [[0, 1], [2, 3, 4, 5, 6, 7]]}, "b": {"kept": [0, 1]}}
    with pytest.raises(UserError, match="layers 'a', 'b' share their experts: merge them alike"):
        keep_experts(network, plans)
