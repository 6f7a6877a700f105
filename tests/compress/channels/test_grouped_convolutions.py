"""Units of grouped convolutions: whole groups go, with the channels that feed them and those that they make."""

from __future__ import annotations

import copy

import pytest
import torch
from testkit import tiny_networks
from testkit.channel_slices import PICTURE, by_name, check_slices, groups_of, reasons
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.compress.channels.channel_costs import ChannelCosts
from mtlc.compress.pagcp.oracle import Oracle
from mtlc.compress.pagcp.sweep import Rules, filter_norms, kept_counts
from mtlc.compress.pass_interface import Budget, Context
from mtlc.compress.passes.prune import Prune, PruneConfig
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.hw.cost.count import workload
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec


class Grouped(nn.Module):
    """before 16 ── grouped 32 (4 groups) ── norm ── after 16 ── head"""

    def __init__(self, groups: int = 4, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 16, 1)
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=groups)
        self.norm = middle or nn.BatchNorm2d(32)
        self.after = nn.Conv2d(32, 16, 1)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm(self.grouped(F.relu(self.before(image))))
        return self.head(F.relu(self.after(F.relu(x))))


class Block(nn.Module):
    """ResNeXt's: a bottleneck with a grouped convolution inside, and a shortcut."""

    def __init__(self, width: int, inner: int, groups: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU())
        self.grouped = nn.Sequential(
            nn.Conv2d(inner, inner, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(inner), nn.ReLU()
        )
        self.expand = nn.Sequential(nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.expand(self.grouped(self.squeeze(x))))


def resnext() -> nn.Module:
    blocks = [Block(16, 24, 6), Block(16, 24, 4)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *blocks, nn.Conv2d(16, 2, 1))


class Around(nn.Module):
    """stem 12 ─┬─ grouped 12 (3 groups) ─ + ─ depth multiplier 24 ── head"""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.multiplied = nn.Conv2d(12, 24, 3, padding=1, groups=12)
        self.head = nn.Conv2d(24, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        return self.head(F.relu(self.multiplied(F.relu(x + self.grouped(F.relu(x))))))


class Joined(nn.Module):
    """Whole groups, other channels and a second grouped convolution meet in one concatenation."""

    def __init__(self, other: int = 12) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 8, 1)
        self.grouped = nn.Conv2d(8, 16, 3, padding=1, groups=4)
        self.plain = nn.Conv2d(3, other, 1)
        self.merge = nn.Conv2d(16 + other, 20, 1)
        self.head = nn.Conv2d(20, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        joined = torch.cat([self.plain(image), self.grouped(F.relu(self.before(image)))], 1)
        return self.head(F.relu(self.merge(F.relu(joined))))


def chain(*groups: int, width: int = 24, last: nn.Module | None = None) -> nn.Module:
    grouped = [nn.Conv2d(width, width, 3, padding=1, groups=g) for g in groups]
    return nn.Sequential(nn.Conv2d(3, width, 1), *grouped, nn.ReLU(), last or nn.Conv2d(width, 2, 1))


class Shuffle(nn.Module):
    """Grouped convolutions with a channel shuffle between, and a depth-wise one: ShuffleNet's block."""

    def __init__(self, fixed: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 1)
        self.first = nn.Conv2d(24, 24, 1, groups=3)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.last = nn.Conv2d(24, 24, 1, groups=3)
        self.head = nn.Conv2d(24, 2, 1)
        self.fixed = fixed

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.stem(image))
        y = F.relu(self.first(x))
        parts = y.unflatten(1, (3 if self.fixed else self.first.groups, -1))
        return self.head(x + self.last(self.depthwise(parts.transpose(1, 2).flatten(1, 2))))


class RegNet(nn.Module):
    """That of transformers, with squeeze and excitation."""

    def __init__(self) -> None:
        from transformers import RegNetConfig, RegNetModel

        super().__init__()
        config = RegNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], groups_width=8, layer_type="y")
        self.backbone = RegNetModel(config)
        self.head = nn.Conv2d(32, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.backbone(image).last_hidden_state)


def test_a_regnet_loses_groups():
    groups = groups_of(RegNet(), PICTURE)
    stage = "backbone.encoder.stages.{}.layers.0.layer.0.convolution"
    found = {u.name: (u.channels, u.width, u.maskable) for u in groups.units if u.kind == "groups"}
    assert found == {stage.format(0): (2, 8, True), stage.format(1): (4, 8, True)}
    removed = {u.name: [c for c in range(u.channels) if c % 3 == 1] for u in groups.units}
    check_slices(RegNet(), removed, PICTURE)


def test_a_channel_is_a_whole_group():
    groups = groups_of(Grouped())
    unit = by_name(groups)["before"]
    assert (unit.kind, unit.channels, unit.width, unit.multiple, unit.maskable) == ("groups", 4, 4, 1, True)
    assert {(m.layer, m.side): m.of([1]) for m in unit.members} == {
        ("before", "out"): [4, 5, 6, 7], ("grouped", "both"): list(range(8, 16)),
        ("norm", "both"): list(range(8, 16)), ("after", "in"): list(range(8, 16)),
    }  # fmt: skip
    assert reasons(groups) == {"head": "an output of the network"}


def test_a_grouped_convolution_loses_rows_and_groups():
    module = Grouped()
    weight = module.grouped.weight.detach().clone()
    cut = check_slices(module, {"before": [0, 2], "after": [3]})
    assert (cut.grouped.groups, cut.grouped.in_channels, cut.grouped.out_channels) == (2, 8, 16)
    assert torch.equal(cut.grouped.weight, weight[[*range(8, 16), *range(24, 32)]])
    assert "Conv2d(8, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=2)" in repr(cut)
    assert (cut.before.out_channels, cut.norm.num_features, cut.after.in_channels) == (8, 16, 16)


@pytest.mark.parametrize(
    ("module", "removed", "units"),
    [
        (
            resnext,
            {"1.squeeze.0": [1, 5], "2.squeeze.0": [0], "0": [2, 3]},
            {"0": 16, "1.squeeze.0": 6, "2.squeeze.0": 4},
        ),
        (Around, {"stem": [1]}, {"stem": 3}),
        (Shuffle, {"last": [0, 5]}, {"last": 8}),
        (Joined, {"before": [0, 3], "plain": [1, 11], "merge": [5]}, {"before": 4, "plain": 12, "merge": 20}),
        (lambda: chain(4, 8), {"0": [0, 3]}, {"0": 4}),
        (lambda: chain(4, 6), {"0": [1]}, {"0": 2}),
        (lambda: chain(12, 24), {"0": [1, 2, 5]}, {"0": 12}),
    ],
)  # fmt: skip
def test_networks_of_grouped_convolutions(module, removed, units):
    network = module()
    assert {name: u.channels for name, u in by_name(groups_of(network)).items()} == units
    check_slices(network, removed)


def test_group_norms_beside_groups_keep_their_own_even():
    """4 groups of 8 channels, normed in 16 groups: any half of a convolution's group would do; 3 · 8 are 24."""
    module = Grouped(middle=nn.GroupNorm(16, 32))
    unit = by_name(groups_of(module))["before"]
    assert (unit.multiple, unit.maskable) == (2, False)
    assert check_slices(module, {"before": [0, 3]}).norm.num_channels == 16
    why = "a group norm allows no fewer channels"
    assert reasons(groups_of(Grouped(middle=nn.GroupNorm(32, 32))))["before"] == why


def image_groups() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 12, 3, groups=3), nn.ReLU(), nn.Conv2d(12, 2, 1))


class Unequal(nn.Module):
    """16 and 4 channels in four groups of 5."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 4, 1)
        self.grouped, self.head = nn.Conv2d(20, 8, 1, groups=4), nn.Conv2d(8, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(F.relu(self.grouped(torch.cat([self.left(image), self.right(image)], 1))))


class Shown(nn.Module):
    """What feeds the grouped convolution is an output, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 2, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(image)
        return x, self.head(F.relu(self.grouped(x)))


@pytest.mark.parametrize(
    ("module", "left"),
    [
        (image_groups, {"0": "it reads channels that are not followed (conv2d in 0)"}),
        (Shown, {"stem": "an output of the network"}),
        (lambda: chain(4, last=nn.Flatten()), {"0": "an output of the network"}),
    ],
)
def test_groups_that_cannot_go_are_left_alone_with_a_reason(module, left):
    groups = groups_of(module())
    assert groups.units == []
    found = reasons(groups)
    assert {name: found.get(name) for name in left} == left


@pytest.mark.parametrize(
    ("module", "units"),
    [
        # 3 and then 4 groups of 12 channels have no part in common: the same places of all groups go.
        (lambda: chain(3, 4, width=12), {"0": 4, "2": 3}),
        (Unequal, {"grouped": 2}),
        (lambda: nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1, groups=8), nn.Conv2d(8, 2, 1)), {"0": 8}),
    ],
)
def test_groups_without_a_part_in_common(module, units):
    network = module()
    found = by_name(groups_of(network))
    assert {name: unit.channels for name, unit in found.items()}.items() >= units.items()
    removed = {name: [c for c in range(u.channels) if c % 3 == 1] for name, u in found.items()}
    cut = check_slices(network, {name: gone for name, gone in removed.items() if gone})
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in network.parameters())


def test_a_network_that_counts_on_its_groups_loses_places_of_all_of_them():
    module = Shuffle(fixed=True)
    (unit,) = groups_of(module).units
    assert (unit.channels, unit.kind, unit.by_layers) == (8, "channels", False)
    cut = check_slices(module, {unit.name: [0, 3]})
    assert (cut.first.groups, cut.first.in_channels, cut.first.weight.shape) == (3, 18, (24, 6, 1, 1))
    assert (cut.depthwise.groups, cut.last.groups) == (24, 3)


def test_ignored_groups():
    assert by_name(groups_of(Grouped(), ignore=("grouped",))).keys() == {"after"}
    assert reasons(groups_of(Grouped(), ignore=("before",)))["before"] == "ignored by the job"


def test_round_to_counts_the_channels_of_layers():
    unit = by_name(groups_of(Grouped()))["before"]
    assert kept_counts(unit.channels, Rules(round_to=8), unit.multiple, unit.width) == [2]
    assert kept_counts(unit.channels, Rules(round_to=4), unit.multiple, unit.width) == [3, 2, 1]


@pytest.mark.parametrize("reconstruct", [False, True])
def test_trials_are_the_losses_of_the_network_that_is_cut(reconstruct):
    torch.manual_seed(2)
    module = tiny_networks.random_norms(resnext()).eval()
    image = torch.randn(8, 3, 8, 8)
    tasks = (TaskSpec("out", "mse", "mse", output=""),)
    program = Program(module, tasks, {"image": image[:2]}, ModelSource("none:none"))
    with torch.no_grad():
        data = tiny_networks.Samples({"image": image, "out": module(image) + 0.1})
    oracle = Oracle(program, groups_of(module), Criteria(tasks), data, batch_size=4, reconstruct=reconstruct)
    assert oracle.notes == []
    assert all(unit.maskable for unit in oracle.units.values())
    removed = {"1.squeeze.0": [1, 5], "0": [2], "2.squeeze.0": [0]}
    for name, channels in removed.items():
        losses = oracle.trial(name, channels)
        oracle.commit(name, channels, losses)
    cut = program.clone()
    cut.module.load_state_dict({**cut.module.state_dict(), **oracle.reconstructed()})
    groups_of(cut.module).prune(removed)
    assert losses == pytest.approx(evaluate(cut, Criteria(tasks), data, 4).losses, rel=1e-5)
    norms = filter_norms(oracle, oracle.units["2.squeeze.0"], 1)
    assert torch.isfinite(norms).all()
    assert (norms > 0).all()


def test_claimed_costs_by_hand():
    """64 places; a group of `grouped` is 8 rows of 4 inputs and 9 taps, fed by 4 rows of 3, read as 8 columns.

    The layer that reads it has 16 rows.
    """
    module = Grouped()
    groups = groups_of(module)
    tasks = (TaskSpec("out", "mse", "mse", output=""),)
    program = Program(module, tasks, {"image": torch.randn(2, 3, 8, 8)}, ModelSource("none:none"))
    costs = ChannelCosts(program, by_name(groups))
    assert costs.cost({}) - costs.cost({"before": [2]}) == 64 * (4 * 3 + 8 * 4 * 9 + 8 * 16)
    cut = copy.deepcopy(module)
    groups_of(cut).prune({"before": [2]})
    assert costs.cost({"before": [2]}) == workload(Program(cut, tasks, program.example, program.source)).macs


def two_tasks() -> nn.Module:
    torch.manual_seed(4)
    trunk = [nn.Conv2d(3, 16, 3, padding=1), Block(16, 32, 8), Block(16, 32, 4)]
    return tiny_networks.random_norms(TwoTasks(nn.Sequential(*trunk)))


class TwoTasks(nn.Module):
    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk, self.depth, self.semseg = trunk, nn.Conv2d(16, 1, 1), nn.Conv2d(16, 3, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.trunk(image)
        return {"depth": self.depth(x), "semseg": self.semseg(x)}


def test_pruning_groups_from_end_to_end(tmp_path):
    source = ModelSource(f"{__name__}:two_tasks", {})
    program = Program(source.build().eval(), tiny_networks.TASKS, {"image": torch.zeros(2, 3, 8, 8)}, source)
    whole = workload(program).macs
    splits = tiny_networks.taught_splits(program, 8, 8, 4)
    context = Context(splits, Criteria(program.tasks), program, tmp_path, Budget("macs", 0.5 * whole))
    step = Prune(PruneConfig(recalibrate=0, rounds=1, round_to=4, initial_thres=1000.0, sensitivity=(0.5,)))
    step.requires(program, context)
    result = step.run(program, context)
    step.ensures(program, result)
    after = result.program
    assert result.cost_claimed == {"macs": workload(after).macs}
    assert workload(after).macs <= 0.5 * whole
    assert [s["kind"] for s in after.history[-1].surgery] == ["slice"]
    convs = [after.module.trunk[index].grouped[0] for index in (1, 2)]
    assert all(conv.weight.shape[1] == conv.out_channels // conv.groups for conv in convs)
    assert sum(conv.groups for conv in convs) < 8 + 4
    after.save(tmp_path / "saved")
    loaded = Program.load(tmp_path / "saved", source)
    assert tiny_networks.same_state(loaded.module, after.module)
    with torch.no_grad():
        batch = {"image": tiny_networks.images(4, 8, 7)}
        one, other = loaded.outputs(batch), after.outputs(batch)
    assert all(torch.equal(one[task], other[task]) for task in other)
