"""Plain tensors go along with their network, and what a call in evaluation stores is gone when the next one begins."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlc.errors import UserError
from mtlc.evaluation.repeatability import check_repeatable
from mtlc.export.graph.lower import lower
from mtlc.hw.cost.count import macs
from mtlc.program.plain_state import copied, settle
from mtlc.program.program import ModelSource, Program
from mtlc.program.usable_network import usable_network
from mtlc.tasks.task import TaskSpec

X = torch.arange(24.0).view(2, 3, 4) / 24


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)


class Strides(Base):
    """As detection heads keep them: a tensor, and tensors within containers."""

    def __init__(self) -> None:
        super().__init__()
        self.stride = torch.tensor([8.0, 16.0])
        self.grids: Any = {"small": [torch.ones(4)], "sizes": (torch.tensor(2.0), 3)}

    def forward(self, x: Tensor) -> Tensor:
        small, size = self.grids["small"][0], self.grids["sizes"][0]
        return self.layer(x) * self.stride[0] + small * size


class Cached(Base):
    """As LeViT keeps its attention bias: worked out once in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}
        self.shape: tuple[int, ...] | None = None
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and "bias" not in self.cache:
            self.cache["bias"] = self.layer.bias * 2
        self.shape, self.last = tuple(x.shape), self.layer(x)
        return self.last + (self.layer.bias * 2 if self.training else self.cache["bias"])


class Shaped(Base):
    """As YOLO's decoding: constants for a size of input, kept with that size; one of them is a buffer."""

    anchors = torch.empty(0)

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        if self.size != x.shape[1]:
            self.anchors, self.scale, self.size = torch.full((4,), float(x.shape[1])), torch.full((4,), 2.0), x.shape[1]
        return self.layer(x) * self.scale + self.anchors


class Counting(Base):
    """A schedule: it counts the calls, in a number and in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.steps += 1
        return self.layer(x)


class Remembers(Base):
    """What it says depends on the call before."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x) + self.memory
        self.memory.copy_(out.detach().mean((0, 1)))
        return out


class Lazy(Base):
    """It builds itself at its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.built = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.built:
            self.more, self.built = nn.Linear(4, 4), True
        return self.more(self.layer(x))


class Hooked(Base):
    """As transformers: it puts hooks on its parts at the first call; a part has a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.installed = Cached(), False

    def forward(self, x: Tensor) -> Tensor:
        if not self.installed:
            self.layer.register_forward_hook(lambda layer, inputs, output: 2 * output)
            self.installed = True
        return self.layer(self.part(x))


def settled(kind: type[nn.Module]) -> Any:
    torch.manual_seed(0)
    return usable_network(kind().eval(), "test:net")


def program(kind: type[nn.Module]) -> Program:
    task = TaskSpec("out", "mse", "mse", output="")
    return Program(settled(kind), (task,), {"x": X}, ModelSource("test:net"))


@pytest.mark.parametrize("make", [lambda net: net, copied, copy.deepcopy])
def test_plain_tensors_are_cast_with_their_network(make) -> None:
    network = settled(Strides)
    wanted = network(X)
    doubled = make(network).double()
    assert doubled.stride.dtype is torch.float64
    assert doubled.grids["small"][0].dtype is doubled.grids["sizes"][0].dtype is torch.float64
    assert doubled.grids["sizes"][1] == 3
    assert torch.allclose(doubled(X.double()).float(), wanted, atol=1e-6)
    assert list(doubled.state_dict()) == ["layer.weight", "layer.bias"]


def test_plain_tensors_are_moved_with_their_network() -> None:
    network = settled(Strides).to("meta")
    assert network.stride.is_meta
    assert network.grids["small"][0].is_meta


def test_a_copy_has_its_own_plain_tensors() -> None:
    network = settled(Strides)
    other = copied(network)
    other.stride.fill_(0)
    other.double()
    assert network.stride.tolist() == [8.0, 16.0]
    assert network.stride.dtype is torch.float32


def test_a_network_that_kept_features_with_their_graph_is_copied() -> None:
    network = settled(Cached)
    network(X)
    assert network.last.requires_grad
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(network)
    assert torch.equal(copied(network)(X), network(X))


@pytest.mark.parametrize("make", [lambda net: net, copied])
def test_a_cache_of_evaluation_is_not_the_next_calls(make) -> None:
    network = settled(Cached)
    with torch.inference_mode():
        network(X)
    network = make(network)
    with torch.no_grad():
        network.layer.bias += 1
    assert torch.allclose(network(X), torch.nn.functional.linear(X, network.layer.weight, 3 * network.layer.bias))


def test_what_a_call_left_can_be_read_until_the_next_begins() -> None:
    network = settled(Cached)
    out = network(X)
    assert torch.allclose(network.last, out - 2 * network.layer.bias, atol=1e-6)
    assert network.shape == (2, 3, 4)
    network.train()(X[:1])
    assert network.cache == {}


def test_constants_and_the_size_that_they_are_for_go_together() -> None:
    network = settled(Shaped)
    long, short = network(X), network(X[:, :2])
    assert torch.equal(network(X), long)
    assert torch.equal(network(X[:, :2]), short)
    assert torch.equal(network.scale, torch.full((4,), 2.0))
    network.train()
    network(X[:, :1])
    assert network.size == 1
    network(X[:, :1])
    assert network.size == 1


def test_a_schedule_counts_in_training_alone() -> None:
    network = settled(Counting)
    for _ in range(3):
        network(X)
    assert network.calls == 1  # of the last call, undone when the next begins
    network.train()
    for _ in range(3):
        network(X)
    assert network.calls == 3
    network.eval()(X)
    network.train()(X)
    assert network.calls == 4


def test_what_is_changed_between_calls_stays() -> None:
    network = settled(Cached)
    network(X)
    network.shape = (1, 2, 3)
    network.cache["bias"] = torch.zeros(4)
    assert torch.allclose(network(X), network.layer(X))


def test_a_network_that_builds_itself_stays_built() -> None:
    network = settled(Lazy)
    once = network(X)
    assert torch.equal(network(X), once)


def test_hooks_are_put_on_once_and_caches_go() -> None:
    network = settled(Hooked)
    once = network(X)
    assert torch.equal(network(X), once)
    assert len(network.layer._forward_hooks) == 1
    with torch.no_grad():
        network.part.layer.bias += 1
    again = copied(network)(X)
    assert torch.equal(again, network(X))
    assert float((again - once).detach().abs().max()) > 0.1


def test_buffers_of_inference_mode_can_be_trained_with() -> None:
    network = settled(Shaped)
    with torch.inference_mode():
        network(X)
    network.train()(X).sum().backward()
    assert network.layer.weight.grad is not None


def test_a_call_that_fails_leaves_no_trace_either() -> None:
    network = settled(Cached)
    with pytest.raises(RuntimeError):
        network(torch.zeros(2, 3, 5))
    assert network.layer(X).shape == network(X).shape


def test_no_hook_is_added_twice_by_settling_a_part_of_a_network() -> None:
    network = settled(Cached)
    around = nn.Sequential(network)
    settle(around)
    around(X)
    around(X)
    assert network.cache.keys() == {"bias"}
    around.train()(X)
    assert network.cache == {}


@pytest.mark.parametrize("kind", [Strides, Cached, Shaped, Counting])
def test_such_networks_are_costed_and_exported(kind) -> None:
    made = program(kind)
    check_repeatable(made, {"x": X})
    assert macs(made) == 3 * 4 * 4
    assert macs(made.clone()) == 3 * 4 * 4
    assert lower(made).outputs == {"out": "out"}
    check_repeatable(made, {"x": X})


def test_a_network_with_a_memory_is_refused() -> None:
    with pytest.raises(UserError, match=r"two runs on the same samples differ.*keeps 'memory' between its calls"):
        check_repeatable(program(Remembers), {"x": X})
