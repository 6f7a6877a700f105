"""The graph of a network's layers: who reads from whom, what joins, and what only one of two networks has."""

from __future__ import annotations

import torch
from testkit.costed_networks import program
from torch import Tensor, nn, zeros

from mtlc.hw.cost.count import workload
from mtlc.hw.cost.layer_graph import layer_graph
from mtlc.hw.cost.workload import Workload


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.b(torch.relu_(self.norm(self.a(x)))))


class Shared(nn.Module):
    """One layer that runs twice, and a join of three."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.stem(x)
        second = self.twice(first)
        return self.head(torch.cat([first, second, self.twice(second)], 1))


def work(network: nn.Module) -> Workload:
    return workload(program(network, zeros(1, 3, 8, 8)))


def edges(before: Workload, after: Workload) -> dict[str, list[str]]:
    graph = layer_graph(before, after, ["x"])
    assert graph is not None
    return {node.id: node.inputs for node in graph.nodes}


def test_norms_and_activations_are_passed_through_and_sums_are_joins() -> None:
    found = work(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), Block(), nn.Conv2d(4, 2, 1)))
    assert edges(found, found) == {
        "input x": [],
        "0": ["input x"],
        "2.a": ["0"],
        "2.b": ["2.a"],
        "2 join 1": ["0", "2.b"],
        "3": ["2 join 1"],
        "output task": ["3"],
    }


def test_a_layer_that_runs_twice_is_one_node() -> None:
    found = work(Shared())
    assert edges(found, found) == {
        "input x": [],
        "stem": ["input x"],
        "twice": ["stem"],
        "(network) join 1": ["stem", "twice"],
        "head": ["(network) join 1"],
        "output task": ["head"],
    }


def test_what_only_one_network_has_says_so() -> None:
    old = work(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), Block(), nn.Conv2d(4, 2, 1)))
    new = work(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Identity(), nn.Conv2d(4, 2, 1)))
    graph = layer_graph(old, new, ["x"])
    assert graph is not None
    assert {node.id: node.network for node in graph.nodes if node.network != "both"} == dict.fromkeys(
        ["2.a", "2.b", "2 join 1"], "before"
    )
    assert next(node for node in graph.nodes if node.id == "3").inputs == ["2 join 1", "0"]


def test_without_a_known_flow_there_is_no_graph() -> None:
    found = work(nn.Sequential(nn.Conv2d(3, 2, 1)))
    assert layer_graph(Workload(found.operators, 0), found, ["x"]) is None
