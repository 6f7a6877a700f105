"""Channel groups of small networks whose coupling can be read off their drawing, and the surgery on them."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from testkit import tiny_networks
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.compress.channels import traced_groups
from mtlc.compress.channels.channel_costs import ChannelCosts
from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.compress.channels.slicing import removed_indices, sliced
from mtlc.compress.channels.unit import Unit
from mtlc.errors import UserError
from mtlc.hw.cost.count import workload
from mtlc.program import surgery
from mtlc.program.program import ModelSource, Program
from mtlc.program.surgery import dependency_graph
from mtlc.program.unpacking import unpack
from mtlc.tasks.task import TaskSpec

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
TOKENS = torch.randn(2, 10, 8, generator=torch.Generator().manual_seed(6))


def groups_of(module: nn.Module, example: Tensor = IMAGE, ignore=()) -> ChannelGroups:
    module.eval()
    return ChannelGroups(module, (example,), ignore)


def parts(unit: Unit) -> set[tuple[str, str]]:
    return {(m.layer, m.side) for m in unit.members}


def by_name(groups: ChannelGroups) -> dict[str, Unit]:
    return {unit.name: unit for unit in groups.units}


def reasons(groups: ChannelGroups) -> dict[str, str]:
    return {item.name: item.why for item in groups.left_alone}


def check(module: nn.Module, removed: dict[str, list[int]], example: Tensor = IMAGE) -> nn.Module:
    """Prune a copy: it equals the sliced network, costs what `ChannelCosts` says, and its surgery replays exactly."""
    groups = groups_of(tiny_networks.random_norms(module), example)
    units = by_name(groups)
    with torch.no_grad(), sliced(module, units, removed):
        expected = module(example)
    program = Program(module, (TaskSpec("out", "mse", "mse", output=""),), {"image": example}, ModelSource("none:none"))
    pruned, again = copy.deepcopy(module), copy.deepcopy(module)
    steps = groups_of(pruned, example).prune(removed)
    assert steps
    with torch.no_grad():
        assert torch.allclose(pruned(example), expected, atol=1e-5)
    built = Program(pruned, program.tasks, program.example, program.source)
    assert ChannelCosts(program, units, "macs").cost(removed) == workload(built).macs
    assert ChannelCosts(program, units, "params").cost(removed) == built.parameters_count()
    surgery.replay(again, (example,), json.loads(json.dumps(steps)))
    assert tiny_networks.same_state(pruned, again)
    return pruned


class Residual(nn.Module):
    """stem ─┬─ inner ── outer ─ + ── head"""

    #        └──────────────────┘

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12))
        self.inner = nn.Conv2d(12, 16, 3, padding=1)
        self.outer = nn.Conv2d(16, 12, 3, padding=1)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.stem(image))
        return self.head(F.relu(x + self.outer(F.relu(self.inner(x)))))


def test_synchronised_batch_norms_lose_channels_as_others_do():
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))

    usual, synchronised = net(), nn.SyncBatchNorm.convert_sync_batchnorm(net())
    assert by_name(groups_of(synchronised))["0"] == by_name(groups_of(usual))["0"]
    check(synchronised, {"0": [0, 5]})


def test_residual_partners_are_one_unit():
    units = by_name(groups_of(Residual()))
    assert {name: unit.channels for name, unit in units.items()} == {"inner": 16, "outer": 12}
    assert parts(units["outer"]) == {
        ("stem.0", "out"), ("stem.1", "both"), ("outer", "out"), ("inner", "in"), ("head", "in"),
    }  # fmt: skip
    assert [m.layer for m in units["inner"].producers] == ["inner"]
    assert [m.layer for m in units["inner"].consumers] == ["outer"]


@dataclass
class Features:
    x: Tensor
    stage: str = "last"


class Answer(NamedTuple):
    out: Features


class OwnTypes(nn.Module):
    """`Residual` whose layers and outputs are of types that torch has not been told of."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = Residual()

    def forward(self, image: Tensor) -> Answer:
        return Answer(Features(self.inside(image)))


def test_outputs_of_types_that_torch_does_not_know():
    """In the graph, in the trial of each unit, and in what torch-pruning follows."""
    module = OwnTypes().eval()
    groups = groups_of(module)
    assert groups.tested  # the network was exported
    assert {unit.name: unit.channels for unit in groups.units} == {"inside.inner": 16, "inside.outer": 12}
    groups.prune({"inside.outer": [1, 4, 6, 11]})
    assert module.inside.head.weight.shape == (5, 8, 1, 1)
    assert module(IMAGE).out.x.shape == (2, 5, 8, 8)
    assert not module._forward_hooks
    traced = traced_groups.TracedGroups(OwnTypes().eval(), (IMAGE,))
    assert {unit.name: unit.channels for unit in traced.units} == {"inside.inner": 16, "inside.outer": 12}


def test_twelve_channels_become_eight():
    pruned = check(Residual(), {"outer": [1, 4, 6, 11]})
    assert pruned.stem[0].weight.shape == (8, 3, 3, 3)
    assert pruned.stem[1].num_features == 8
    assert pruned.inner.weight.shape == (16, 8, 3, 3)
    assert pruned.head.weight.shape == (5, 8, 1, 1)


def test_the_channels_that_go_are_those_that_were_named():
    module = Residual()
    weight = module.outer.weight.detach().clone()
    pruned = check(module, {"inner": [0, 15], "outer": [1, 4]})
    rows = [i for i in range(12) if i not in (1, 4)]
    assert torch.equal(pruned.outer.weight, weight[rows][:, 1:15])


def test_task_heads_are_no_units():
    groups = groups_of(Residual())
    assert reasons(groups) == {"head": "an output of the network"}
    two = groups_of(tiny_networks.chain(), torch.zeros(2, 3, 8, 8))
    assert {u.name for u in two.units} == {"stem.0", "body.0"}
    assert set(reasons(two)) == {"semseg"}  # depth has one channel


def test_nothing_to_prune_is_no_step():
    groups = groups_of(Residual())
    assert groups.prune({}) == []
    assert groups.prune({"outer": []}) == []


class Concat(nn.Module):
    """left 16 ─┐
    ├─ 28 ── head
    right 12 ───┘
    """

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 16, 3, padding=1)
        self.right = nn.Conv2d(3, 12, 3, padding=1)
        self.head = nn.Conv2d(28, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(F.relu(torch.cat([self.left(image), self.right(image)], 1)))


def test_concatenation_shifts_the_consumers_indices():
    module = Concat()
    units = by_name(groups_of(module))
    right = next(m for m in units["right"].consumers if m.layer == "head")
    assert right.of([0, 3]) == [16, 19]
    assert removed_indices(units, {"left": [2], "right": [1]})["head"]["in"] == {2, 17}
    weight = module.head.weight.detach().clone()
    pruned = check(module, {"left": [0, 5], "right": [11]})
    assert torch.equal(pruned.head.weight, weight[:, [i for i in range(28) if i not in (0, 5, 27)]])


class Shared(nn.Module):
    """Two units meet in one layer: `join` adds 32 channels to the concatenation of two times 16."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 16, 3, padding=1)
        self.right = nn.Conv2d(3, 16, 3, padding=1)
        self.join = nn.Conv2d(3, 32, 3, padding=1)
        self.head = nn.Conv2d(32, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(F.relu(torch.cat([self.left(image), self.right(image)], 1) + self.join(image)))


def test_a_sum_with_a_concatenation():
    units = by_name(groups_of(Shared()))
    assert {name: u.channels for name, u in units.items()} == {"join": 16, "right": 16}
    pruned = check(Shared(), {"join": [0, 3], "right": [1, 15]})
    assert pruned.left.out_channels == pruned.right.out_channels == 14


def test_units_that_share_a_layer_have_names_of_their_own():
    """Both hold a part of `join`, the first of their layers by name."""
    module = Shared().eval()
    groups = ChannelGroups(module, (IMAGE,))
    units = by_name(groups)
    assert len(units) == len(groups.units) == 2
    assert all(u.channels == 16 and ("join", "out") in parts(u) for u in groups.units)
    removed = {name: [0, 1] for name in units}
    with torch.no_grad(), sliced(module, units, removed):
        expected = module(IMAGE)
    groups.prune(removed)
    assert module.join.weight.shape[0] == 28
    assert torch.allclose(module(IMAGE), expected, atol=1e-5)


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm = nn.BatchNorm2d(16)
        self.up = nn.ConvTranspose2d(16, 10, 2, 2)
        self.head = nn.Conv2d(10, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(F.relu(self.up(F.relu(self.norm(self.depthwise(self.wide(image)))))))


def test_depthwise_and_transposed_convolutions():
    units = by_name(groups_of(Depthwise()))
    assert parts(units["wide"]) == {("wide", "out"), ("depthwise", "both"), ("norm", "both"), ("up", "in")}
    pruned = check(Depthwise(), {"wide": [0, 7, 8], "up": [2, 9]})
    assert (pruned.depthwise.groups, pruned.depthwise.weight.shape) == (13, (13, 1, 3, 3))
    assert pruned.up.weight.shape == (13, 8, 2, 2)


class Flattened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.hidden = nn.Linear(16 * 16, 24)
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.hidden(F.relu(self.conv(image)).flatten(1)))))


def test_a_channel_becomes_many_features_after_flatten():
    units = by_name(groups_of(Flattened()))
    hidden = next(m for m in units["conv"].consumers if m.layer == "hidden")
    assert hidden.of([1]) == list(range(16, 32))
    assert not units["hidden"].maskable  # a layer norm's mean changes with the width
    pruned = check(Flattened(), {"conv": [1, 2], "hidden": [0, 23]})
    assert pruned.hidden.weight.shape == (22, 14 * 16)
    assert pruned.norm.normalized_shape == (22,)


def test_group_norm_keeps_its_groups_even():
    module = nn.Sequential(nn.Conv2d(3, 24, 3), nn.GroupNorm(6, 24), nn.ReLU(), nn.Conv2d(24, 2, 1))
    nn.init.normal_(module[1].weight)
    units = by_name(groups_of(module))
    assert (units["0"].multiple, units["0"].maskable) == (6, False)
    pruned = check(module, {"0": [0, 1, 2, 5, 20, 23]})
    assert pruned[1].num_channels == 18


class Attention(nn.Module):
    """One block with a residual stream of 32; `split` says how heads are cut, None is `nn.MultiheadAttention`."""

    def __init__(self, split: tuple[int, int] | str | None) -> None:
        super().__init__()
        self.split = split
        self.embed = nn.Linear(8, 32)
        if split is None:
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        else:
            self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.mlp = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32))
        self.head = nn.Linear(32, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        if self.split is None:
            x = x + self.attention(x, x, x, need_weights=False)[0]
        elif self.split == "plain":
            weights = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), -1)
            x = x + self.o(weights @ self.v(x))
        else:
            q, k, v = (f(x).view(*x.shape[:2], *self.split).transpose(1, 2) for f in (self.q, self.k, self.v))
            heads = F.scaled_dot_product_attention(q, k, v)
            x = x + self.o(heads.transpose(1, 2).reshape(*x.shape[:2], -1))
        return self.head(x + self.mlp(x))


@pytest.mark.parametrize(
    ("split", "inside"),
    [
        # One head: what queries and keys are multiplied along may go, and so may what values have.
        ("plain", {("k", "q"): 32, ("v",): 32}),
        # Heads that follow from what is left go as wholes, or each loses the same channel: as the forward allows. What
        # scales the products by the width of a head does not lose any of it.
        ((4, -1), {("v",): 8}),
        ((-1, 8), {("k", "q", "v"): 4}),
        ((4, 8), {("k", "q", "v"): 4}),
    ],
)
def test_attention_without_a_name_loses_what_its_forward_allows(split, inside):
    torch.manual_seed(0)
    module = Attention(split)
    groups = groups_of(module, TOKENS)
    units = by_name(groups)
    assert units["mlp.1"].channels == 48
    made = {tuple(m.layer for m in u.producers): u.channels for u in groups.units}
    assert {layers: n for layers, n in made.items() if set(layers) <= {"q", "k", "v"}} == inside
    assert units["embed"].channels == 32  # the residual stream
    check(module, {name: [c for c in range(u.channels) if c % 3 == 1] for name, u in units.items()}, TOKENS)


def test_packed_attention_is_left_alone_until_it_is_unpacked():
    torch.manual_seed(0)
    module = Attention(None)
    groups = groups_of(module, TOKENS)
    assert {u.name for u in groups.units} == {"mlp.1"}
    assert any("expected `qkv_weight`" in item.why or "embed_dim" in item.why for item in groups.left_alone)
    expected = module.eval()(TOKENS)
    assert unpack(module) == {"kind": "unpack", "folded": [], "attention": ["attention"]}
    assert torch.allclose(module(TOKENS), expected, atol=1e-6)
    units = by_name(groups_of(module, TOKENS))
    assert (units["attention"].kind, units["attention"].channels, units["attention"].width) == ("heads", 4, 8)
    assert units["attention.out_proj"].channels == 32
    pruned = check(module, {"attention": [1], "attention.out_proj": [0, 31], "mlp.1": [5]}, TOKENS)
    assert (pruned.attention.num_heads, pruned.attention.q_proj.weight.shape) == (3, (24, 30))


def test_frozen_layers_are_found_and_stay_frozen():
    module = Residual()
    for parameter in [*module.stem.parameters(), *module.inner.parameters()]:
        parameter.requires_grad_(False)
    units = by_name(groups_of(module))
    assert {name: unit.channels for name, unit in units.items()} == {"inner": 16, "outer": 12}
    pruned = check(module, {"inner": [3], "outer": [0, 1, 2, 3]})
    assert {n for n, p in pruned.named_parameters() if not p.requires_grad} == {
        "stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias", "inner.weight", "inner.bias",
    }  # fmt: skip


def test_tracing_keeps_every_modules_mode():
    module = Residual().train()
    module.stem[1].eval()
    dependency_graph(module, (IMAGE,))
    assert [m.training for m in module.modules()].count(False) == 1
    assert not module.stem[1].training


def test_ignored_layers():
    groups = groups_of(Residual(), ignore=("stem.*",))
    assert {u.name for u in groups.units} == {"inner"}
    assert sorted(reasons(groups).values()) == ["an output of the network", "ignored by the job"]
    assert {u.name for u in groups_of(Residual(), ignore=("inner",)).units} == {"outer"}  # its inputs may go
    with pytest.raises(UserError, match=r"ignore = 'stm.\*' matches no layer of the network"):
        groups_of(Residual(), ignore=("inner", "stm.*"))


def test_unknown_surgery_is_refused():
    with pytest.raises(UserError, match="unknown surgery 'rotate'"):
        surgery.replay(Residual(), (IMAGE,), [{"kind": "rotate"}])


class Refuses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, image: Tensor) -> Tensor:
        raise ValueError("only\nreal pictures")


def test_a_network_that_cannot_be_traced_is_one_line():
    module = Refuses().train()
    module.conv.weight.requires_grad_(False)
    with pytest.raises(UserError, match=r"cannot trace Refuses \(ValueError: only\)"):
        dependency_graph(module, (IMAGE,))
    assert module.conv.training
    assert not module.conv.weight.requires_grad


class Branching(nn.Module):
    """`torch.export` refuses a branch on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.body(image))
        return self.head(x if x.sum() > 0 else -x)


def test_a_search_without_end_is_ended(monkeypatch):
    assert by_name(groups_of(Branching())).keys() == {"body"}
    monkeypatch.setattr(traced_groups, "_LONGEST", -1.0)
    with pytest.raises(UserError, match="did not end within -1 seconds, and torch"):
        groups_of(Branching())
