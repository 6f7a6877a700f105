"""Sorting channels by importance: the network stays what it computes, and the important channels come first."""

from __future__ import annotations

import copy

import pytest
import torch
from testkit import tiny_networks
from testkit.wide_networks import NETWORKS, TASKS, fresh, table_of
from torch import Tensor, nn

from mtlc.compress.slimmable.importance import importances, sort_channels
from mtlc.evaluation.criteria import Criteria
from mtlc.program.program import ModelSource, Program

KINDS = ("taylor", "norm")


def data_of(program: Program, count: int = 6) -> tiny_networks.Samples:
    return tiny_networks.taught(program, count, 0, noise=1.0)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_network_computes_what_it_did(network, kind):
    supernet = fresh(network)
    program, units = supernet.program, supernet.table.units
    with torch.no_grad():
        before = program.outputs(program.example)
    weights = copy.deepcopy(program.module.state_dict())
    scores = importances(program, units, Criteria(program.tasks), data_of(program), kind, 6)
    assert {name: tuple(score.shape) for name, score in scores.items()} == {u.name: (u.channels,) for u in units}
    assert all(bool((score >= 0).all() and score.max() > 0) for score in scores.values())
    sort_channels(program.module, units, scores)
    with torch.no_grad():
        after = program.outputs(program.example)
    for task, output in before.items():
        assert float((after[task] - output).abs().max()) <= 1e-5 * max(1.0, float(output.abs().max()))
    moved = {name for name, tensor in program.module.state_dict().items() if not torch.equal(tensor, weights[name])}
    assert len(moved) >= len(units)
    again = importances(program, units, Criteria(program.tasks), data_of(program), kind, 6)
    for unit in units:
        fixed = any(isinstance(program.module.get_submodule(m.layer), nn.GroupNorm) for m in unit.members)
        expected = scores[unit.name] if fixed else scores[unit.name].sort(descending=True).values
        assert torch.allclose(again[unit.name], expected, rtol=1e-2, atol=1e-3 * float(expected.max()))


def test_a_group_norms_channels_keep_their_groups():
    supernet = fresh("concat")
    module = supernet.program.module
    before = module.join[0].weight.detach().clone()
    scores = {unit.name: torch.arange(float(unit.channels)) for unit in supernet.table.units}
    deep = module.deep[0].weight.detach().clone()
    sort_channels(module, supernet.table.units, scores)
    kept = [module.join[0].weight[:, i] for i in range(16, 32)]  # what `up` makes, turned around
    assert torch.equal(torch.stack(kept, 1), before[:, range(31, 15, -1)])
    assert torch.equal(module.deep[0].weight, deep.flip(0).flip(1))  # both its outputs and what it reads of `down`


@pytest.mark.parametrize("kind", KINDS)
def test_planted_channels_come_first(kind):
    """All but three channels of the body have weights near zero, and so has what is read of them."""
    program = tiny_networks.chain_program(TASKS)
    module, planted = program.module, [5, 11, 20]
    with torch.no_grad():
        faint = [c for c in range(24) if c not in planted]
        module.body[0].weight[faint] *= 1e-3
        module.body[1].weight[faint] *= 1e-3
        module.body[1].bias[faint] *= 1e-3
        for step, channel in enumerate(planted):
            module.body[0].weight[channel] *= 4 - step
    table = table_of(program, round_to=1)
    body = [u for u in table.units if u.name == "body.0"]
    scores = importances(program, body, Criteria(TASKS), data_of(program), kind, 6)
    assert set(scores["body.0"].topk(3).indices.tolist()) == set(planted)
    if kind == "norm":
        assert scores["body.0"].topk(3).indices.tolist() == planted
        assert float(scores["body.0"][5]) == pytest.approx(
            sum(float(t.detach()[5].square().sum()) for t in (module.body[0].weight, *module.body[1].parameters()))
        )
    weight = module.body[0].weight.detach().clone()
    sort_channels(module, body, scores)
    order = scores["body.0"].argsort(descending=True, stable=True)
    assert torch.equal(module.body[0].weight, weight[order])
    assert set(order[:3].tolist()) == set(planted)


class Line(nn.Module):
    """depth = a · (w · brightness), one number per channel: the Taylor score is (w · dL/dw)²."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 4, 1, bias=False)
        self.head = nn.Conv2d(4, 1, 1, bias=False)
        with torch.no_grad():
            self.body.weight.copy_(torch.tensor([1.0, 2.0, 0.0, -1.0]).view(4, 1, 1, 1))
            self.head.weight.copy_(torch.tensor([1.0, 1.0, 5.0, 3.0]).view(1, 4, 1, 1))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"depth": self.head(self.body(image))}


def test_taylor_scores_by_hand():
    """Images of ones and labels of 1: the output is 1 + 2 + 0 − 3 = 0, dL/dy = −2, w · dL/dw = −2 · w · a."""
    example = {"image": torch.ones(1, 1, 2, 2)}
    program = Program(Line().eval(), TASKS[:1], example, ModelSource("none:none"))
    program.module.body.requires_grad_(False)
    units = table_of(program, widths=(0.5, 1.0), round_to=1).units
    data = tiny_networks.Samples({"image": torch.ones(5, 1, 2, 2), "depth": torch.ones(5, 1, 2, 2)})
    scores = importances(program, units, Criteria(program.tasks), data, "taylor", 3)
    assert scores["body"].tolist() == [4.0, 16.0, 0.0, 36.0]
    assert program.module.body.weight.grad is None
    assert not program.module.body.weight.requires_grad
    sort_channels(program.module, units, scores)
    assert program.module.body.weight.flatten().tolist() == [-1.0, 2.0, 1.0, 0.0]
    assert program.module.head.weight.flatten().tolist() == [3.0, 1.0, 1.0, 5.0]
    assert not program.module.body.weight.requires_grad


def test_equals_keep_their_order():
    supernet = fresh("grouped")
    before = copy.deepcopy(supernet.program.module.state_dict())
    sort_channels(
        supernet.program.module, supernet.table.units, {u.name: torch.ones(u.channels) for u in supernet.table.units}
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.program.module.state_dict().items())


class Tied(nn.Module):
    """Two convolutions with one weight: sorting what the first makes would sort what the second reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.one, self.two, self.three = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.two.weight = self.one.weight
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"depth": self.head(self.three(self.two(self.one(self.stem(image)))))}


def test_layers_with_one_weight_keep_their_order():
    torch.manual_seed(0)
    example = {"image": torch.randn(2, 3, 8, 8)}
    program = Program(Tied().eval(), TASKS[:1], example, ModelSource("none:none"))
    units = table_of(program).units
    with torch.no_grad():
        before = program.outputs(example)["depth"]
    weights = copy.deepcopy(program.module.state_dict())
    sort_channels(program.module, units, {u.name: torch.arange(float(u.channels)) for u in units})
    with torch.no_grad():
        assert torch.allclose(program.outputs(example)["depth"], before, atol=1e-5)
    moved = {name for name, tensor in program.module.state_dict().items() if not torch.equal(tensor, weights[name])}
    assert moved == {"three.weight", "three.bias", "head.weight"}
