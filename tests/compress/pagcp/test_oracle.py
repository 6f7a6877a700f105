"""The oracle: trials by zeroing, whole forwards on slices and the network really pruned give the same losses."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from types import MappingProxyType

import pytest
import torch
from testkit import tiny_networks
from torch import Tensor, nn

from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.compress.channels.slicing import sliced
from mtlc.compress.channels.unit import LeftAlone
from mtlc.compress.pagcp.oracle import Oracle
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec


def groups_of(program: Program) -> ChannelGroups:
    example = program.example_inputs()
    return ChannelGroups(program.module, example)


def oracle_of(program: Program, data, **settings) -> Oracle:
    return Oracle(program, groups_of(program), Criteria(program.tasks), data, batch_size=4, **settings)


def pruned_losses(program: Program, removed, data, weights=MappingProxyType({})) -> dict[str, float]:
    """The losses of a copy of the network that really lost the channels, with some weights replaced before."""
    copied = program.clone()
    copied.module.load_state_dict({**copied.module.state_dict(), **weights})
    groups_of(copied).prune(removed)
    return evaluate(copied, Criteria(program.tasks), data, 4).losses


def close(one, other, tolerance=1e-5) -> bool:
    return one.keys() == other.keys() and all(
        math.isclose(one[t], other[t], rel_tol=tolerance, abs_tol=1e-7) for t in one
    )


@pytest.fixture(scope="module")
def program() -> Program:
    return tiny_networks.resnet_program()


@pytest.fixture(scope="module")
def data(program):
    return tiny_networks.taught(program, 10, 0)  # batches of 4, 4 and 2


@pytest.fixture(scope="module")
def oracle(program, data) -> Oracle:
    return oracle_of(program, data)


def half(unit) -> list[int]:
    return list(range(1, unit.channels, 2))


def test_the_units_of_the_zoo_network(oracle):
    assert {u.name: u.channels for u in oracle.units.values()} == {
        "encoder.stages.0.0.conv1.conv": 16,
        "encoder.stages.0.0.conv2.conv": 16,  # with the stem: the shortcut is the identity
        "encoder.stages.1.0.conv1.conv": 24,
        "encoder.stages.1.0.conv2.conv": 24,
        "encoder.stages.2.0.conv1.conv": 32,
        "encoder.stages.2.0.conv2.conv": 32,
        **{
            f"decoders.{task}.{name}": 16
            for task in ("depth", "semseg")
            for name in ("laterals.0", "laterals.1", "smooth.0.conv")
        },
    }
    assert all(u.maskable for u in oracle.units.values())
    assert oracle.notes == []


def test_the_original_losses_are_those_of_the_network(oracle, program, data):
    """The last batch is shorter than the graph's: its filling must not count."""
    assert close(oracle.original, evaluate(program, Criteria(program.tasks), data, 4).losses, 1e-6)


def test_zeroed_sliced_and_pruned_agree_for_every_unit(oracle, program, data):
    for unit in oracle.units.values():
        gone = half(unit)
        asked = oracle.trial(unit.name, gone)
        with sliced(program.module, oracle.units, {unit.name: gone}):
            whole = evaluate(program, Criteria(program.tasks), data, 4).losses
        assert close(asked, whole), unit.name
        assert close(asked, pruned_losses(program, {unit.name: gone}, data)), unit.name
        assert not close(asked, oracle.original, 1e-4), unit.name


def test_slicing_leaves_the_network_as_it_was(oracle, program):
    before = copy.deepcopy(program.module.state_dict())
    parameters = dict(program.module.named_parameters())
    with sliced(program.module, oracle.units, {n: [0] for n in oracle.units}):
        assert program.module.encoder.stem.conv.weight.shape == (15, 3, 3, 3)
        with pytest.raises(RuntimeError):
            program.module(torch.zeros(2, 4, 32, 32))
    assert all(torch.equal(before[k], v) for k, v in program.module.state_dict().items())
    assert all(parameters[k] is v for k, v in program.module.named_parameters())


@pytest.mark.parametrize("settings", [{}, {"cached": False}, {"cache_bytes": 0}, {"cache_bytes": 600_000}])
def test_commits_and_resets(program, data, settings):
    """Every state on the way is that of the pruned network, whatever is cached."""
    oracle = oracle_of(program, data, **settings)
    names = ["encoder.stages.1.0.conv2.conv", "decoders.depth.laterals.0", "encoder.stages.0.0.conv2.conv"]
    removed = {}
    for name in names:
        removed[name] = half(oracle.units[name])
        losses = oracle.trial(name, removed[name])
        assert close(losses, pruned_losses(program, removed, data)), name
        oracle.commit(name, removed[name], losses)
    more = [*removed[names[0]], 0, 2]
    assert close(oracle.trial(names[0], more), pruned_losses(program, {**removed, names[0]: more}, data))
    fewer = {names[1]: removed[names[1]], names[2]: [3, 4], "decoders.semseg.smooth.0.conv": [1, 2, 3]}
    assert close(oracle.reset(fewer), pruned_losses(program, fewer, data))
    assert {name: sorted(c) for name, c in fewer.items()} == oracle.removed
    after = {**fewer, names[0]: [0, 5]}
    assert close(oracle.trial(names[0], [0, 5]), pruned_losses(program, after, data))
    assert close(oracle.reset({}), oracle.original, 1e-6)


def test_memory_costs_work_and_no_digit(program, data):
    """Whatever is kept, all numbers are the same; the less is kept, the more is run again, and that is said."""
    found, work = [], []
    for cache_bytes in (1 << 30, 1_200_000, 600_000, 0):
        oracle = oracle_of(program, data, cache_bytes=cache_bytes)
        graph = oracle._graph
        assert graph.kept_bytes <= cache_bytes // 3
        assert (graph.kept_bytes == graph.read_bytes) == (not oracle.notes) == (cache_bytes == 1 << 30)
        losses = [oracle.original]
        for name in sorted(oracle.units)[::3]:
            gone = half(oracle.units[name])
            oracle.trial(name, gone, {task: 1.01 * loss for task, loss in oracle.losses.items()})  # may end early
            losses.append(oracle.trial(name, gone))
            oracle.commit(name, gone, losses[-1])
        losses.append(oracle.reset({}))
        found.append(losses)
        work.append(oracle.effort.forward_equivalents)
        if cache_bytes == 0:
            assert "0 MB are kept (a third of cache_mb = 0)" in oracle.notes[0]
    for other in found[1:]:
        assert other == found[0]
    assert work == sorted(work)
    assert work[0] < 0.8 * work[-1]


@pytest.mark.parametrize("settings", [{}, {"cached": False}])
def test_reconstructed_weights_are_those_of_the_trial(program, data, settings):
    """What the kept channels make up for: trials, commits in any order and resets agree with the network built."""
    oracle = oracle_of(program, data, reconstruct=True, **settings)
    plain = oracle_of(program, data)
    names = ["encoder.stages.1.0.conv2.conv", "decoders.depth.laterals.0", "encoder.stages.0.0.conv2.conv"]
    for name in names:
        gone = half(oracle.units[name])
        losses = oracle.trial(name, gone)
        oracle.commit(name, gone, losses)
        assert close(losses, pruned_losses(program, oracle.removed, data, oracle.reconstructed())), name
    assert not close(oracle.losses, plain.reset(oracle.removed), 1e-2)
    committed = dict(oracle.losses)
    assert close(oracle.reset({names[1]: [0, 1]}), pruned_losses(program, oracle.removed, data, oracle.reconstructed()))
    assert close(oracle.reset({name: half(oracle.units[name]) for name in reversed(names)}), committed)
    assert close(oracle.reset({}), oracle.original)
    assert oracle.reconstructed() == {}


class Twins(nn.Module):
    """Channels 0 and 1 are equal, channel 2 is minus twice channel 0, channel 3 is another; a 3×3 kernel reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 1, bias=False)
        self.head = nn.Conv2d(4, 2, 3, padding=1)
        with torch.no_grad():
            self.body.weight[1] = self.body.weight[0]
            self.body.weight[2] = -2 * self.body.weight[0]

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(image))


def test_what_other_channels_tell_is_made_up_for():
    """Two of three dependent channels can go at no loss: the third one's weights become w2 − (w0 + w1) / 2."""
    torch.manual_seed(4)
    program, data = single(Twins())
    oracle = oracle_of(program, data, reconstruct=True)
    order = oracle.order(oracle.units["body"])
    assert order.index(3) >= 2
    assert order[-1] != 3 or set(order[:2]) < {0, 1, 2}
    losses = oracle.trial("body", [0, 1])
    assert losses["out"] == pytest.approx(oracle.original["out"], rel=0.01)
    assert oracle_of(program, data).trial("body", [0, 1])["out"] > 1.05 * oracle.original["out"]
    oracle.commit("body", [0, 1], losses)
    before, after = program.module.head.weight, oracle.reconstructed()["head.weight"]
    assert torch.allclose(after[:, 2], before[:, 2] - (before[:, 0] + before[:, 1]) / 2, atol=5e-3)
    assert torch.allclose(after[:, 3], before[:, 3], atol=5e-3)
    assert torch.equal(after[:, :2], torch.zeros_like(after[:, :2]))


def test_a_decoder_touches_only_its_task_and_little_of_the_network(oracle):
    before = oracle.effort.forward_equivalents
    losses = oracle.trial("decoders.depth.laterals.1", [0, 1, 2])
    assert losses["semseg"] == oracle.losses["semseg"]
    assert losses["depth"] != oracle.losses["depth"]
    assert 0 < oracle.effort.forward_equivalents - before < 0.5


def test_a_trial_is_not_run_twice(oracle):
    unit = "decoders.semseg.laterals.1"
    first = oracle.trial(unit, [4, 5, 6, 7])
    trials, work = oracle.effort.trials, oracle.effort.forward_equivalents
    assert oracle.trial(unit, [7, 6, 5, 4], {"depth": 0.0, "semseg": 0.0}) == first
    assert (oracle.effort.trials, oracle.effort.forward_equivalents) == (trials, work)
    assert oracle.trial(unit, [0, 1, 2, 3]) != first  # as many, but others
    assert oracle.effort.trials == trials + 1


def test_a_trial_stops_early_over_a_limit(oracle):
    unit = "encoder.stages.2.0.conv1.conv"
    gone = list(range(24))
    limits = {task: 0.5 * loss for task, loss in oracle.original.items()}
    before = oracle.effort.forward_equivalents
    short = oracle.trial(unit, gone, limits)
    stopped = oracle.effort.forward_equivalents - before
    assert any(short[t] > limits[t] for t in limits)
    loose = {task: 100 * loss for task, loss in oracle.original.items()}
    before = oracle.effort.forward_equivalents
    whole = oracle.trial(unit, gone, loose)  # a cut-short trial does not answer for a looser limit
    # Three batches and five heads, not one batch and the head of the task that was nearest to its limit.
    assert oracle.effort.forward_equivalents - before > 3 * stopped
    assert all(short[t] <= whole[t] + 1e-9 for t in limits)


def test_a_part_of_the_split(program, data):
    assert close(
        oracle_of(program, data, samples=5).original,
        evaluate(program, Criteria(program.tasks), data.first(5), 5).losses,
        1e-6,
    )


def test_a_single_sample(program, data):
    oracle = oracle_of(program, data, samples=1)
    unit = oracle.units["encoder.stages.1.0.conv1.conv"]
    assert close(oracle.original, evaluate(program, Criteria(program.tasks), data.first(1)).losses)
    assert close(oracle.trial(unit.name, half(unit)), pruned_losses(program, {unit.name: half(unit)}, data.first(1)))


def test_a_nan_names_the_task(program):
    data = tiny_networks.taught(replace(program, tasks=tiny_networks.REGRESSION), 4, 0)
    data.tensors["semseg"][2, 0, 3, 3] = math.inf
    program = replace(program, tasks=tiny_networks.REGRESSION)
    with pytest.raises(UserError, match="'semseg': its loss on the calibration split is"):
        oracle_of(program, data)


class Residual(nn.Module):
    """As torchvision writes it: the sum and the activation write over their input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.main = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.last = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.side = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 16, 1))
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        out = self.last(self.main(self.stem(image).relu_()))
        out += self.side(image)
        return self.head(nn.functional.relu(out, inplace=True))


class Normed(nn.Module):
    """A group norm and a layer norm between convolutions with batch norm: some units are maskable, some are not."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.grouped = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(16, 32), nn.ReLU())
        self.bridge = nn.Sequential(nn.Conv2d(32, 16, 1), nn.ReLU())
        self.wide = nn.Linear(16, 24)
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 2)
        with torch.no_grad():
            for norm in (self.grouped[1], self.norm):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_()

    def forward(self, image: Tensor) -> Tensor:
        x = self.bridge(self.grouped(self.plain(image))).flatten(2).transpose(1, 2)
        return self.head(torch.relu(self.norm(self.wide(x))))


def single(module: nn.Module) -> tuple[Program, tiny_networks.Samples]:
    """A program of one task around a module, with data."""
    tiny_networks.random_norms(module).eval()
    task = TaskSpec("out", "mse", "mse", output="")
    program = Program(module, (task,), {"image": torch.zeros(2, 3, 8, 8)}, ModelSource("none:none"))
    return program, tiny_networks.taught(program, 10, 3)


def test_operators_in_place_do_not_spoil_what_is_kept():
    torch.manual_seed(1)
    program, data = single(Residual())
    oracle = oracle_of(program, data)
    assert oracle._graph is not None
    for _ in range(2):
        for unit in oracle.units.values():
            oracle._known.clear()
            assert close(oracle.trial(unit.name, half(unit)), pruned_losses(program, {unit.name: half(unit)}, data))
    assert close(oracle.reset({}), oracle.original)


def test_norms_over_channels_go_the_sliced_way():
    torch.manual_seed(2)
    program, data = single(Normed())
    oracle = oracle_of(program, data)
    assert {u.name: (u.channels, u.maskable, u.multiple) for u in oracle.units.values()} == {
        "plain.0": (16, True, 1),
        "grouped.0": (32, False, 16),
        "bridge.0": (16, True, 1),
        "wide": (24, False, 1),
    }
    removed = {}
    for name, gone in {"wide": [0, 5, 7], "plain.0": [1, 2], "grouped.0": list(range(16)), "bridge.0": [9]}.items():
        removed[name] = gone
        losses = oracle.trial(name, gone)  # maskable ones too must see what was removed the sliced way
        assert close(losses, pruned_losses(program, removed, data)), name
        oracle.commit(name, gone, losses)
    kept = {"plain.0": [3], "bridge.0": [9]}
    assert close(oracle.reset(kept), pruned_losses(program, kept, data))
    assert close(oracle.trial("plain.0", [3, 4]), pruned_losses(program, {**kept, "plain.0": [3, 4]}, data))
    assert close(oracle.reset({"wide": [1]}), pruned_losses(program, {"wide": [1]}, data))
    assert close(oracle.reset({}), oracle.original)


class Fixed(nn.Module):
    """Reshapes to a fixed number of channels: nothing about it can be seen in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.body(image)
        return self.head(x.reshape(len(x), 4, 4, 8, 8).reshape(len(x), 16, 8, 8))


def test_a_unit_that_the_network_does_not_run_without_is_left_alone():
    program, data = single(Fixed())
    oracle = oracle_of(program, data)
    assert oracle.units == {}
    left = {item.name: item for item in oracle.left_alone}
    assert isinstance(left["body"], LeftAlone)
    assert "the network does not run without its channels" in left["body"].why


class Branch(nn.Module):
    """`torch.export` refuses a branch on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.body(image))
        return self.head(x if x.sum() > 0 else -x)


def test_a_network_that_cannot_be_exported_is_run_whole():
    program, data = single(Branch())
    oracle = oracle_of(program, data)
    assert len(oracle.notes) == 1
    assert oracle.notes[0].startswith("torch.export refuses the network")
    gone = {"body": [0, 2, 4]}
    assert close(oracle.trial("body", gone["body"]), pruned_losses(program, gone, data))
