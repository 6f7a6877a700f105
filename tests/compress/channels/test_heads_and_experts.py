"""Finds, tries, cuts, claims and replays attention heads and the hidden channels of experts as pruning units."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from testkit import tiny_networks
from testkit.tiny_networks import same_state, taught, taught_splits
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.compress.channels.channel_costs import ChannelCosts
from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.compress.channels.slicing import sliced
from mtlc.compress.channels.unit import Unit
from mtlc.compress.pagcp.oracle import Oracle
from mtlc.compress.pagcp.reconstruction import Reconstruction
from mtlc.compress.pagcp.sweep import Rules, filter_norms, kept_counts
from mtlc.compress.pass_interface import Budget, Context
from mtlc.compress.passes.prune import Prune, PruneConfig
from mtlc.compress.training.train_config import FinetuneConfig
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.hw.cost.count import workload
from mtlc.program import surgery
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec

SMALL = {
    "size": "micro", "width": 48, "heads": 3, "blocks": 4, "experts": 4, "top_k": 2, "head_width": 16,
    "image_size": [32, 32], "patch": 8, "tasks": {"depth": 1, "semseg": 3},
}  # fmt: skip
ATTENTION, PERCEPTRON, EXPERTS = "backbone.blocks.1.attn", "backbone.blocks.0.mlp.fc1", "backbone.blocks.1.mlp.experts"


def awake(module: nn.Module) -> nn.Module:
    """Weights so large that every head, hidden channel and routing decision shows in the outputs."""
    for name, parameter in module.named_parameters():
        if name.startswith("backbone"):
            nn.init.normal_(parameter, std=0.15)
    return tiny_networks.random_norms(module).eval()


def m3vit_program(**settings) -> Program:
    source = ModelSource("mtlc.zoo.m3vit:m3vit", {**SMALL, **settings})
    torch.manual_seed(3)
    return Program(awake(source.build()), tiny_networks.TASKS, {"image": torch.zeros(2, 3, 32, 32)}, source)


def groups_of(program: Program, ignore=()) -> ChannelGroups:
    example = program.example_inputs()
    return ChannelGroups(program.module, example, ignore)


def oracle_of(program: Program, data, **settings) -> Oracle:
    return Oracle(program, groups_of(program), Criteria(program.tasks), data, batch_size=4, **settings)


def cut(program: Program, removed, weights=None) -> tuple[Program, list[surgery.Step]]:
    """A copy of the network that lost the channels, with some weights replaced before."""
    copied = program.clone()
    copied.module.load_state_dict({**copied.module.state_dict(), **(weights or {})})
    return copied, groups_of(copied).prune(removed)


def losses_of(program: Program, data) -> dict[str, float]:
    return evaluate(program, Criteria(program.tasks), data, 4).losses


@pytest.fixture(scope="module")
def program() -> Program:
    return m3vit_program()


@pytest.fixture(scope="module")
def data(program):
    return taught(program, 8, 0)


@pytest.fixture(scope="module")
def oracle(program, data) -> Oracle:
    return oracle_of(program, data)


def test_the_units_of_m3vit(program):
    groups = groups_of(program)
    blocks = [f"backbone.blocks.{i}" for i in range(4)]
    assert {u.name: (u.kind, u.channels, u.width, u.maskable) for u in groups.units} == {
        **{f"{b}.attn": ("heads", 3, 16, True) for b in blocks},
        **{f"{b}.mlp.fc1": ("channels", 192, 1, True) for b in blocks[::2]},
        **{f"{b}.mlp.experts": ("experts", 48, 1, True) for b in blocks[1::2]},
        **{f"heads.{t}.convs.{i}": ("channels", 16, 1, True) for t in ("depth", "semseg") for i in range(3)},
    }
    left = {item.why: item.channels for item in groups.left_alone}
    assert left == {"an output of the network": 3, "its channels are read or made by experts": 48}
    stream = next(item for item in groups.left_alone if item.channels == 48)
    assert stream.name in {"backbone.patch_embed", *(f"{b}.attn.proj" for b in blocks)}


@pytest.mark.parametrize("gate", ["single", "conditioned"])
def test_the_units_do_not_hang_on_the_gate(gate):
    groups = groups_of(m3vit_program(gate=gate, blocks=2))
    assert [(u.name, u.channels) for u in groups.units if u.name.startswith("backbone.blocks.")] == [
        ("backbone.blocks.0.attn", 3), ("backbone.blocks.0.mlp.fc1", 192),
        ("backbone.blocks.1.attn", 3), ("backbone.blocks.1.mlp.experts", 48),
    ]  # fmt: skip
    assert "its channels are read or made by experts" in {item.why for item in groups.left_alone}


def test_the_units_do_not_hang_on_the_routing(program):
    """All tokens go to the first two experts: a graph of what ran shows half of the weights."""
    biased = program.clone()
    for _, router in biased.module.routers():
        nn.init.zeros_(router.weight)
    assert [u.name for u in groups_of(biased).units] == [u.name for u in groups_of(program).units]
    pruned, _ = cut(biased, {EXPERTS: [0, 5]})
    assert pruned.module.get_submodule(EXPERTS).fc1.weight.shape == (4, 46, 48)


def test_the_members_of_a_fused_attention_are_its_heads_rows_and_columns(program):
    unit = next(u for u in groups_of(program).units if u.name == ATTENTION)
    rows, columns = unit.members
    assert (rows.layer, rows.side, columns.layer, columns.side) == (
        f"{ATTENTION}.qkv",
        "out",
        f"{ATTENTION}.proj",
        "in",
    )
    assert rows.of([1]) == [*range(16, 32), *range(64, 80), *range(112, 128)]
    assert columns.of([0, 2]) == [*range(16), *range(32, 48)]


REMOVED = {
    "heads": {ATTENTION: [1]},
    "perceptron": {PERCEPTRON: list(range(0, 192, 3))},
    "experts": {EXPERTS: list(range(0, 48, 2))},
    "all": {
        ATTENTION: [0, 2], "backbone.blocks.2.attn": [2], PERCEPTRON: [1, 2], EXPERTS: [5], "heads.depth.convs.0": [0],
    },
}  # fmt: skip


@pytest.mark.parametrize("what", REMOVED)
def test_trials_are_the_losses_of_the_network_that_is_cut(program, data, oracle, what):
    assert oracle.notes == []
    oracle.reset({})
    for name, channels in REMOVED[what].items():
        losses = oracle.trial(name, channels)
        oracle.commit(name, channels, losses)
    cut_losses = losses_of(cut(program, REMOVED[what])[0], data)
    assert losses == pytest.approx(cut_losses, rel=1e-5)
    assert losses != pytest.approx(oracle.original, rel=2e-4)
    with sliced(program.module, oracle.units, REMOVED[what]):
        assert losses_of(program, data) == pytest.approx(cut_losses, rel=1e-6)
    assert oracle.units[ATTENTION].maskable
    assert oracle.reset({}) == pytest.approx(oracle.original, rel=1e-6)


@pytest.mark.parametrize("what", REMOVED)
def test_claimed_costs_are_measured_costs_and_surgery_replays_bit_for_bit(program, what):
    units = {u.name: u for u in groups_of(program).units}
    pruned, steps = cut(program, REMOVED[what])
    assert [s["kind"] for s in steps] == ["slice"]
    assert ChannelCosts(program, units, "macs").cost(REMOVED[what]) == workload(pruned).macs < workload(program).macs
    assert ChannelCosts(program, units, "params").cost(REMOVED[what]) == pruned.parameters_count()
    again = copy.deepcopy(program.module)
    surgery.replay(again, program.example_inputs(), json.loads(json.dumps(steps)))
    assert same_state(again, pruned.module)


def test_the_costs_of_a_head_and_of_a_hidden_channel_by_hand(program):
    """17 tokens of 48; a head of 16 is 3 · 16 rows, 16 columns and two products. Two tasks run blocks from 1 on."""
    costs = ChannelCosts(program, {u.name: u for u in groups_of(program).units})
    head = 17 * 48 * 48 + 17 * 16 * 48 + 2 * 17 * 17 * 16
    assert costs.cost({}) - costs.cost({"backbone.blocks.0.attn": [0]}) == head
    assert costs.cost({}) - costs.cost({"backbone.blocks.2.attn": [1]}) == 2 * head
    assert costs.cost({}) - costs.cost({EXPERTS: [7]}) == 2 * 17 * 2 * (48 + 48)  # tasks, tokens, top-k
    whole = ChannelCosts(program, {u.name: u for u in groups_of(program).units}, "params")
    assert whole.cost({}) - whole.cost({EXPERTS: [7]}) == 4 * (48 + 1 + 48)
    assert whole.cost({}) - whole.cost({ATTENTION: [0]}) == 3 * 16 * 49 + 48 * 16


def test_masked_experts_cost_what_they_claim():
    """Every expert runs on every token; the product of routing weights and biases does not shrink."""
    masked = m3vit_program(form="masked", blocks=2)
    units = {u.name: u for u in groups_of(masked).units}
    assert ChannelCosts(masked, units).cost({EXPERTS: [0, 1, 2]}) == workload(cut(masked, {EXPERTS: [0, 1, 2]})[0]).macs


def test_all_experts_of_a_layer_lose_the_same_channels(program):
    pruned, _ = cut(program, {EXPERTS: [0, 47]})
    before, after = program.module.get_submodule(EXPERTS), pruned.module.get_submodule(EXPERTS)
    assert torch.equal(after.fc1.weight, before.fc1.weight[:, 1:47])
    assert torch.equal(after.fc1.bias, before.fc1.bias[:, 1:47])
    assert torch.equal(after.fc2.weight, before.fc2.weight[:, :, 1:47])
    assert torch.equal(after.fc2.bias, before.fc2.bias)


def test_surgery_sets_nothing_but_the_networks_own_numbers():
    net = Net(Fused())
    for attribute, value in (("forward", 1), ("num_heads", "two"), ("heads", 2)):
        with pytest.raises(UserError, match=f"the surgery sets '{attribute}' of 'attn'"):
            surgery.replay(net, (), [{"kind": "slice", "layers": [], "attributes": [["attn", attribute, value]]}])
    surgery.replay(net, (), [{"kind": "slice", "layers": [], "attributes": [["attn", "num_heads", 2]]}])
    assert net.attn.num_heads == 2


def test_frozen_experts_stay_frozen(program):
    copied = program.clone()
    copied.module.get_submodule(EXPERTS).fc1.weight.requires_grad_(False)
    groups_of(copied).prune({EXPERTS: [0], ATTENTION: [0]})
    assert [n for n, p in copied.module.named_parameters() if not p.requires_grad] == [f"{EXPERTS}.fc1.weight"]


def test_ignored_units(program):
    groups = groups_of(program, ("backbone.blocks.1.*", "backbone.blocks.3.attn"))
    ignored = {item.name for item in groups.left_alone if item.why == "ignored by the job"}
    assert ignored >= {ATTENTION, EXPERTS, "backbone.blocks.3.attn"}
    assert {u.name for u in groups.units} & ignored == set()
    assert "backbone.blocks.3.mlp.experts" in {u.name for u in groups.units}


@pytest.mark.parametrize(
    ("heads", "width", "round_to", "counts"),
    [(3, 16, 8, [2, 1]), (2, 16, 8, [1]), (8, 8, 16, [6, 4, 2]), (12, 64, 64, list(range(11, 0, -1)))],
)
def test_round_to_counts_channels_of_layers(heads, width, round_to, counts):
    assert kept_counts(heads, Rules(round_to=round_to), 1, width) == counts


def test_the_norm_of_a_hidden_channel_is_over_all_experts(program, oracle):
    fc1 = program.module.get_submodule(EXPERTS).fc1.weight.detach()
    oracle.reset({})
    assert torch.allclose(filter_norms(oracle, oracle.units[EXPERTS], 1), fc1.abs().mean((0, 2)))
    qkv = program.module.get_submodule(f"{ATTENTION}.qkv").weight.detach().unflatten(0, (3, 3, 16))
    assert torch.allclose(filter_norms(oracle, oracle.units[ATTENTION], 1), qkv.abs().mean((0, 2, 3)))


def test_the_other_heads_and_channels_make_up_for_what_goes(program):
    """Against the whole network's own outputs; trials and the network that is cut agree."""
    program = replace(program, tasks=tiny_networks.REGRESSION)
    data = taught(program, 8, 0, noise=0.0)
    oracle, plain = oracle_of(program, data, reconstruct=True), oracle_of(program, data)
    for unit in (ATTENTION, EXPERTS, PERCEPTRON):
        order = oracle.order(oracle.units[unit])
        assert sorted(order) == list(range(oracle.units[unit].channels))
        gone = order[: len(order) // 2]
        oracle.commit(unit, gone, oracle.trial(unit, gone))
    made_up, bare = (
        losses_of(cut(program, oracle.removed, oracle.reconstructed())[0], data),
        plain.reset(oracle.removed),
    )
    assert oracle.losses == pytest.approx(made_up, rel=1e-5)
    assert all(made_up[task] < 0.9 * bare[task] for task in bare)


@pytest.mark.parametrize("reconstruct", [False, True])
def test_whole_forwards_agree_with_kept_activations(program, data, oracle, reconstruct):
    """What serves a network that `torch.export` refuses."""
    whole = oracle_of(program, data, cached=False, reconstruct=reconstruct)
    kept = oracle_of(program, data, reconstruct=True) if reconstruct else oracle
    for name, channels in REMOVED["all"].items():
        assert whole.trial(name, channels) == pytest.approx(kept.trial(name, channels), rel=1e-5)
    assert whole.reset(REMOVED["all"]) == pytest.approx(kept.reset(REMOVED["all"]), rel=1e-5)
    kept.reset({})


def test_a_head_that_others_can_replace_goes_first_and_costs_nothing():
    """Heads 0 and 2 have equal rows: one of them goes first, and the other does its work."""
    program = m3vit_program(blocks=2)
    qkv = program.module.get_submodule(f"{ATTENTION}.qkv")
    with torch.no_grad():
        for part in range(3):
            rows = [slice(48 * part + 16 * head, 48 * part + 16 * (head + 1)) for head in range(3)]
            qkv.weight[rows[2]], qkv.bias[rows[2]] = qkv.weight[rows[0]], qkv.bias[rows[0]]
    data = taught(program, 8, 0)
    oracle = oracle_of(program, data, reconstruct=True)
    first = oracle.order(oracle.units[ATTENTION])[0]
    assert first in (0, 2)
    assert oracle.trial(ATTENTION, [first]) == pytest.approx(oracle.original, rel=1e-3)
    plain = oracle_of(program, data).trial(ATTENTION, [first])
    assert max(plain[t] / oracle.original[t] for t in plain) > 1.02


def test_each_expert_makes_up_for_its_own_channels(program):
    """Channel 1 is twice channel 0 in expert 0 and minus channel 0 in expert 1: what both tell goes to channel 0."""
    moment = torch.eye(48, dtype=torch.double).repeat(4, 1, 1)
    moment[0, 0, 1] = moment[0, 1, 0] = 2.0
    moment[0, 1, 1] = 4.0
    moment[1, 0, 1] = moment[1, 1, 0] = -1.0
    unit = next(u for u in groups_of(program).units if u.name == EXPERTS)
    made = Reconstruction(program.module, {}, [])
    made._moments[f"{EXPERTS}.fc2"] = moment
    before = program.module.get_submodule(EXPERTS).fc2.weight.detach()
    after = made.weight(unit.consumers[0], before, [1])
    assert torch.equal(after[:, :, 1], torch.zeros(4, 48))
    assert torch.allclose(after[0, :, 0], before[0, :, 0] + 2 * before[0, :, 1], atol=5e-3)
    assert torch.allclose(after[1, :, 0], before[1, :, 0] - before[1, :, 1], atol=5e-3)
    assert torch.allclose(after[2:, :, 2:], before[2:, :, 2:])


@pytest.mark.parametrize(("kind", "share", "rounds"), [("macs", 0.6, 1), ("params", 0.6, 1), ("macs", 0.3, 2)])
def test_pruning_m3vit_from_end_to_end(tmp_path: Path, program, kind, share, rounds):
    whole = {"macs": workload(program).macs, "params": program.parameters_count()}
    context = Context(
        taught_splits(program, 8, 8, 4), Criteria(program.tasks), program, tmp_path, Budget(kind, share * whole[kind])
    )
    tune = FinetuneConfig(epochs=1, batch_size=8, ema=0.5) if rounds > 1 else None
    one = Prune(PruneConfig(finetune=tune, recalibrate=0, rounds=rounds, initial_thres=1000.0, sensitivity=(0.5,)))
    one.requires(program, context)
    result = one.run(program, context)
    one.ensures(program, result)
    after = result.program
    assert result.missed is None
    measured = {"macs": workload(after).macs, "params": after.parameters_count()}
    assert result.cost_claimed == {kind: measured[kind]}
    assert measured[kind] <= share * whole[kind]
    assert len(result.report["rounds"]) == rounds
    kept = {name: count for one in result.report["rounds"] for name, count in one["kept_channels"].items()}
    assert all(count % 8 == 0 for name, count in kept.items() if not name.endswith(".attn"))
    for index in range(4):
        attention = after.module.backbone.blocks[index].attn
        assert attention.proj.in_features == 16 * kept.get(f"backbone.blocks.{index}.attn", 3)
    for index in (1, 3):
        experts = after.module.backbone.blocks[index].mlp.experts
        hidden = kept.get(f"backbone.blocks.{index}.mlp.experts", 48)
        assert (experts.fc1.weight.shape, experts.fc2.weight.shape) == ((4, hidden, 48), (4, 48, hidden))
    assert {s["kind"] for s in after.history[-1].surgery} >= {"slice"}
    after.save(tmp_path / "saved")
    torch.manual_seed(7)
    loaded = Program.load(tmp_path / "saved", program.source)
    batch = {"image": tiny_networks.images(4, 32, 7)}
    assert same_state(loaded.module, after.module)
    with torch.no_grad():
        one_way, other = loaded.outputs(batch), after.outputs(batch)
    assert all(torch.equal(one_way[task], other[task]) for task in other)


# -- other people's attention ------------------------------------------------------------------------------------------


class Fused(nn.Module):
    """As timm writes it; `order` says how the rows of `qkv` are laid out."""

    def __init__(self, order: str = "3hd", heads: int = 4, fixed: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim, self.order = heads, 8, 32, order
        self.qkv, self.proj = nn.Linear(32, 96, bias=False), nn.Linear(32, 32)
        self.fixed = 32 if fixed else None

    def forward(self, x: Tensor) -> Tensor:
        if self.order == "3hd":
            qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        else:
            qkv = self.qkv(x).reshape(*x.shape[:2], self.num_heads, 3, self.head_dim).permute(3, 0, 2, 1, 4)
        made = F.scaled_dot_product_attention(*qkv).transpose(1, 2)
        return self.proj(made.reshape(*x.shape[:2], self.fixed or self.attn_dim))


class Inner(nn.Module):
    """As BERT writes it: the projection lies in a module beside it."""

    def __init__(self, keys: int = 4) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = 4, 8, 32
        self.num_key_value_heads = keys
        self.query, self.key, self.value = nn.Linear(32, 32), nn.Linear(32, 8 * keys), nn.Linear(32, 8 * keys)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (-1, self.attention_head_size)).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        weights = torch.softmax(q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(2, 3), -1)
        made = weights @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)
        return made.transpose(1, 2).reshape(*x.shape[:2], self.all_head_size)


class Beside(nn.Module):
    def __init__(self, keys: int = 4) -> None:
        super().__init__()
        self.attention, self.output = Inner(keys), nn.ModuleDict({"dense": nn.Linear(32, 32)})

    def forward(self, x: Tensor) -> Tensor:
        return self.output["dense"](self.attention(x))


class Mixed(Fused):
    """Every head is mixed with its neighbours after attention: there is no removing one alone."""

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        made = F.scaled_dot_product_attention(*qkv)
        return self.proj((made + made.mean(1, keepdim=True)).transpose(1, 2).flatten(2))


class Net(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.embed, self.attn, self.head = nn.Linear(8, 32), attention, nn.Linear(32, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(x + self.attn(x))


def attention_program(attention: nn.Module) -> tuple[Program, tiny_networks.Samples]:
    torch.manual_seed(1)
    tasks = (TaskSpec("out", "mse", "mse", output=""),)
    net = Net(attention).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    program = Program(net, tasks, {"image": torch.randn(2, 10, 8)}, ModelSource("none:none"))
    tokens = torch.randn(6, 10, 8)
    return program, tiny_networks.Samples({"image": tokens, "out": net(tokens).detach() + 0.1})


def unit_of(oracle: Oracle) -> Unit:
    return next(u for u in oracle.units.values() if u.kind == "heads")


@pytest.mark.parametrize(
    ("attention", "attributes"),
    [
        (Fused, {"attn": {"num_heads": 1, "head_dim": 8, "attn_dim": 8}}),
        (
            Beside,
            {
                "attn.attention":
                {"num_attention_heads": 1, "num_key_value_heads": 1, "all_head_size": 8, "attention_head_size": 8}
            },
        ),
    ],
)  # fmt: skip
def test_heads_of_other_peoples_attention(attention, attributes):
    program, data = attention_program(attention())
    oracle = oracle_of(program, data)
    unit = unit_of(oracle)
    ((path, after),) = attributes.items()
    assert (unit.name, unit.channels, unit.width, unit.maskable) == (path, 4, 8, True)
    gone = [0, 1, 3]
    pruned, steps = cut(program, {path: gone})
    assert {name: getattr(pruned.module.get_submodule(path), name) for name in after} == after
    assert oracle.trial(path, gone) == pytest.approx(losses_of(pruned, data), rel=1e-5)
    assert ChannelCosts(program, oracle.units).cost({path: gone}) == workload(pruned).macs
    again = copy.deepcopy(program.module)
    assert getattr(again.get_submodule(path), next(iter(after))) == 4  # trials gave back what they borrowed
    surgery.replay(again, program.example_inputs(), json.loads(json.dumps(steps)))
    image = data.tensors["image"]
    assert torch.equal(again(image), pruned.module(image))


@pytest.mark.parametrize(
    ("attention", "name", "heads", "maskable"),
    [
        # Another layout of the rows is read off the graph.
        (Fused("h3d"), "attn", 4, True),
        # A number of the module's own that the forward reshapes to falls with the heads.
        (Fused(fixed=True), "attn", 4, True),
        # A mean over all heads is one over those that are left: zeros do not stand for a head.
        (Mixed(), "attn", 4, False),
        # Two heads of keys and values for four of queries: a pair of queries goes with its key; one for all stays.
        (Beside(keys=2), "attn.attention", 2, True),
        (Beside(keys=1), "attn.attention", 4, True),
    ],
)
def test_other_heads(attention, name, heads, maskable):
    program, data = attention_program(attention)
    oracle = oracle_of(program, data)
    unit = unit_of(oracle)
    assert (unit.name, unit.channels, unit.maskable) == (name, heads, maskable)
    gone = list(range(1, heads))
    pruned, _ = cut(program, {name: gone})
    assert oracle.trial(name, gone) == pytest.approx(losses_of(pruned, data), rel=1e-5)
    assert oracle.trial(name, gone) != pytest.approx(oracle.original, rel=1e-3)
    assert ChannelCosts(program, oracle.units).cost({name: gone}) == workload(pruned).macs


@pytest.mark.parametrize(
    ("attention", "why"),
    [
        (Fused(heads=3), "its 3 heads of 8 do not make up its 32 channels"),
    ],
)
def test_attention_that_cannot_lose_heads_is_left_alone_with_a_reason(attention, why):
    if isinstance(attention, Fused) and attention.num_heads == 3:
        attention.forward = lambda x: attention.proj(attention.qkv(x)[..., :32])  # never runs as attention
    program, data = attention_program(attention)
    oracle = oracle_of(program, data)
    assert all(u.kind == "channels" for u in oracle.units.values())
    reasons = [item.why for item in oracle.left_alone if item.name.startswith("attn")]
    assert [reason for reason in reasons if reason.startswith(why)] == reasons != []
