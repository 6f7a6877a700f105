"""A network at any of its widths: it computes and costs what the cut network does, and is itself again afterwards."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from testkit import wide_networks
from testkit.wide_networks import NETWORKS, TASKS, fresh, program_of, supernet_of, table_of
from torch import Tensor, nn

from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.compress.slimmable.width_table import WidthTable
from mtlc.errors import UserError
from mtlc.hw.cost.count import macs
from mtlc.program.program import HistoryEntry, ModelSource, Program

UNCHANGED = ("training", "_parameters", "_buffers", "_modules", "_forward_hooks")


def configurations(table: WidthTable) -> st.SearchStrategy[Configuration]:
    def tuples(groups: tuple[str, ...]) -> st.SearchStrategy[tuple[float, ...]]:
        return st.tuples(*(st.sampled_from(table.options(group)) for group in groups))

    return st.builds(Configuration, tuples(table.stages), tuples(table.tasks))


def outputs(program: Program) -> dict[str, Tensor]:
    with torch.no_grad():
        return program.outputs(program.example)


def state(module: nn.Module) -> list[Any]:
    """All that a forward can depend on: every tensor (the object, and its numbers) and every attribute."""
    seen: list[Any] = []
    for layer in module.modules():
        seen += [{k: v for k, v in vars(layer).items() if k not in UNCHANGED}, layer.training]
        for store in (layer._parameters, layer._buffers):
            seen += [(name, id(t), None if t is None else t.detach().tolist()) for name, t in store.items()]
    return seen


@pytest.mark.parametrize("round_to", [8, 1])
@pytest.mark.parametrize("network", NETWORKS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(data=st.data())
def test_a_width_is_the_cut_network(network, round_to, data):
    supernet = supernet_of(network, round_to)
    configuration = data.draw(configurations(supernet.table))
    cut = supernet.narrow(configuration)
    with supernet.at(configuration):
        ours = outputs(supernet.program)
    theirs = outputs(cut)
    assert all(torch.equal(ours[task], theirs[task]) for task in theirs)
    assert supernet.macs(configuration) == macs(cut)


@pytest.mark.parametrize("network", NETWORKS)
def test_narrowest_and_widest(network):
    supernet = supernet_of(network)
    program = supernet.program
    before = outputs(program)
    cut = supernet.narrow(supernet.smallest)
    assert supernet.macs(supernet.largest) == macs(program)
    assert supernet.macs(supernet.smallest) == macs(cut) < 0.6 * macs(program)
    with supernet.at(supernet.smallest):
        narrow = outputs(program)
    assert all(not torch.allclose(narrow[task], before[task], atol=1e-3) for task in before)
    assert all(torch.equal(output, before[task]) for task, output in outputs(program).items())
    assert all(torch.equal(o, before[t]) for t, o in outputs(supernet.narrow(supernet.largest)).items())
    kept = supernet.table.kept_counts(supernet.smallest)
    shapes = {name: tuple(layer.weight.shape) for name, layer in cut.module.named_modules() if hasattr(layer, "weight")}
    for unit in supernet.table.units:
        for member in unit.producers:
            if unit.kind in ("channels", "heads") and member.layer in shapes:
                rows = 1 if isinstance(cut.module.get_submodule(member.layer), nn.ConvTranspose2d) else 0
                assert shapes[member.layer][rows] == sum(len(slot) for slot in member.indices[: kept[unit.name]])


@pytest.mark.parametrize("network", NETWORKS)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(data=st.data())
def test_costs_are_the_encoders_and_each_decoders(network, data):
    supernet = supernet_of(network)
    one, other = (data.draw(configurations(supernet.table)) for _ in range(2))
    parts = {t: supernet.decoder_macs(t, one.encoder, w) for t, w in one.decoder_of(supernet.tasks).items()}
    assert supernet.macs(one) == supernet.encoder_macs(one.encoder) + sum(parts.values())
    mixed = Configuration(one.encoder, (one.decoders[0], other.decoders[1]))
    last = supernet.tasks[1]
    change = supernet.decoder_macs(last, one.encoder, other.decoders[1]) - parts[last]
    assert supernet.macs(mixed) - supernet.macs(one) == change
    assert min(parts.values()) > 0
    wider = Configuration(tuple(map(max, one.encoder, other.encoder)), tuple(map(max, one.decoders, other.decoders)))
    assert supernet.macs(wider) >= supernet.macs(one)


@pytest.mark.parametrize("network", NETWORKS)
def test_afterwards_all_is_as_before(network):
    supernet = fresh(network)
    module = supernet.program.module.train()
    module.requires_grad_(False)
    before = state(module)
    torch.manual_seed(0)
    for configuration in (supernet.smallest, Configuration(supernet.largest.encoder, supernet.smallest.decoders)):
        with supernet.at(configuration):
            supernet.program.outputs(supernet.program.example)
        with pytest.raises(KeyError), supernet.at(configuration):
            supernet.program.outputs({})
    if network == "m3vit":  # its routers keep what they routed last
        for _, router in module.routers():
            router.routing = None
    assert state(module) == before


def test_an_unknown_width_changes_nothing():
    supernet = fresh("concat")
    before = state(supernet.program.module)
    bad = Configuration((0.3, 1.0), (1.0, 1.0))
    with pytest.raises(UserError, match=r"width 0\.3 was not trained"), supernet.at(bad):
        pass
    assert state(supernet.program.module) == before


@pytest.mark.parametrize("network", ["resnet", "m3vit", "convnext", "grouped", "concat"])
def test_gradients_reach_the_leading_part_alone(network):
    supernet = fresh(network)
    module = supernet.program.module
    with supernet.at(supernet.smallest):
        for output in supernet.program.outputs(supernet.program.example).values():
            output.square().sum().backward(retain_graph=True)
    gone: dict[str, dict[str, set[int]]] = {}
    removed = supernet.table.removed(supernet.smallest)
    for unit in supernet.table.units:
        for member in unit.members:
            sides = gone.setdefault(member.layer, {"in": set(), "out": set()})
            sides["in" if member.side == "in" else "out"].update(member.of(removed.get(unit.name, ())))
    for path, sides in gone.items():
        weight = module.get_submodule(path).weight
        lost = torch.zeros_like(weight, dtype=torch.bool)
        grouped = getattr(module.get_submodule(path), "groups", 1) > 1
        flip = isinstance(module.get_submodule(path), nn.ConvTranspose2d)
        first = 1 if weight.ndim == 3 and network == "m3vit" else 0  # linear layers of experts
        rows, columns = (first + 1, first) if flip else (first, first + 1)
        lost.index_fill_(rows, torch.tensor(sorted(sides["out"]), dtype=torch.long), True)
        if weight.ndim > 1 and not grouped:
            lost.index_fill_(columns, torch.tensor(sorted(sides["in"]), dtype=torch.long), True)
        assert bool(lost.any())
        assert float(weight.grad[lost].abs().max()) == 0.0
        assert float(weight.grad[~lost].abs().max()) > 0.0


@pytest.mark.parametrize("network", ["resnet", "concat"])
def test_training_a_narrow_width_leaves_the_widests_statistics(network):
    """Those of layers that lose nothing in this configuration too: what they read is the narrow encoder's."""
    supernet = fresh(network)
    program = supernet.program
    program.module.train()
    before = {name: buffer.clone() for name, buffer in program.module.named_buffers()}
    narrow_encoder = Configuration((*supernet.smallest.encoder[:1], *supernet.largest.encoder[1:]), (1.0, 1.0))
    for configuration in (supernet.smallest, narrow_encoder):
        with supernet.at(configuration):
            program.outputs(program.example)
    assert all(torch.equal(buffer, before[name]) for name, buffer in program.module.named_buffers())
    program.outputs(program.example)
    changed = {n for n, buffer in program.module.named_buffers() if not torch.equal(buffer, before[n])}
    assert changed == set(before)


class Reads(nn.Conv2d):
    """Like weight-standardising convolutions, its forward reads its own numbers of channels."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.reshape(self.out_channels, self.in_channels, 3, 3)
        return nn.functional.conv2d(x, weight - weight.mean(), self.bias, padding=1)


def test_layers_that_read_their_own_sizes():
    torch.manual_seed(0)
    layers = [Reads(3, 16, 3), nn.InstanceNorm2d(16, affine=True), Reads(16, 16, 3), wide_networks.Heads(16)]
    program = Program(
        nn.Sequential(*layers).eval(), TASKS, {"image": torch.randn(2, 3, 8, 8)}, ModelSource("none:none")
    )
    supernet = Supernet(program, table_of(program))
    assert [unit.name for unit in supernet.table.units] == ["0", "2", "3.depth.0", "3.semseg.0"]
    cut = supernet.narrow(supernet.smallest)
    with supernet.at(supernet.smallest):
        ours = outputs(program)
    assert all(torch.allclose(output, ours[task], atol=1e-6) for task, output in outputs(cut).items())


class SumOfConcat(nn.Module):
    """`join` is added to left and right side by side: its leading half is all that `left` has."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 3, padding=1)
        self.join = nn.Conv2d(3, 32, 3, padding=1)
        self.mixed = nn.Conv2d(32, 16, 1)
        self.heads = wide_networks.Heads(16)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = torch.cat([self.left(image), self.right(image)], 1) + self.join(image)
        return self.heads(self.mixed(x))


def test_a_sum_with_a_concatenation_is_two_units():
    torch.manual_seed(0)
    program = Program(SumOfConcat().eval(), TASKS, {"image": torch.randn(2, 3, 8, 8)}, ModelSource("none:none"))
    table = table_of(program)
    assert [unit.name for unit in table.units] == ["heads.depth.0", "heads.semseg.0", "join", "mixed", "right"]
    supernet = Supernet(program, table)
    cut = supernet.narrow(supernet.smallest)
    assert cut.module.join.weight.shape[0] == 16
    assert cut.module.mixed.weight.shape == (8, 16, 1, 1)
    with supernet.at(supernet.smallest):
        ours = outputs(program)
    assert all(torch.equal(output, ours[task]) for task, output in outputs(cut).items())


def test_units_that_fit_only_if_they_lose_the_same_are_left_alone():
    """SegFormer's `sequence_reduction` reshapes to its input's width, which is another group's."""
    left = {item.name: item.why for item in supernet_of("segformer").table.left_alone}
    first = "backbone.stages.0.blocks.0.attention"
    assert left[first] == "it has one head"
    for layer in ("o_proj", "sequence_reduction.sequence_reduction"):
        assert left[f"{first}.{layer}"].startswith("the network does not run without its channels (RuntimeError")
    stages = {stage: [u.name for u in supernet_of("segformer").table.of(stage)] for stage in ("stage1", "stage2")}
    second = "backbone.stages.1.blocks.0"
    assert stages == {
        "stage1": ["backbone.stages.0.blocks.0.mlp.fc1"],
        "stage2": [f"{second}.attention", f"{second}.attention.o_proj", f"{second}.mlp.fc1"],
    }  # fmt: skip


@pytest.mark.parametrize("network", NETWORKS)
def test_kept_indices_are_those_of_the_cut_network(network):
    supernet = supernet_of(network)
    cut = supernet.narrow(supernet.smallest).module
    kept = supernet.kept_indices(supernet.smallest)
    checked = 0
    for path, (rows, columns) in kept.items():
        wide, narrow = supernet.program.module.get_submodule(path), cut.get_submodule(path)
        if not isinstance(wide, nn.Linear | nn.Conv2d) or getattr(wide, "groups", 1) > 1:
            continue
        weight = wide.weight if rows is None else wide.weight[rows]
        assert torch.equal(weight if columns is None else weight[:, columns], narrow.weight)
        checked += 1
    assert checked >= 4
    assert supernet.kept_indices(supernet.largest) == {}


def slimmed(network: str, *later: HistoryEntry) -> Program:
    supernet = supernet_of(network)
    entry = HistoryEntry("slim", {}, [supernet.table.to_step()], {})
    return replace(supernet.program, history=(entry, *later))


def test_a_checkpoint_holds_the_supernet():
    program = slimmed("concat", HistoryEntry("finetune", {}, [], {}))
    supernet = Supernet.of(program)
    assert supernet.table.to_step() == supernet_of("concat").table.to_step()
    assert supernet.macs(supernet.smallest) == supernet_of("concat").macs(supernet.smallest)


def test_programs_that_are_no_supernet():
    plain = program_of("concat")
    with pytest.raises(UserError) as caught:
        Supernet.of(plain)
    assert str(caught.value) == "the program has one width: make a slimmable one with: mtlc slim JOB"
    cut = HistoryEntry("prune", {}, [{"kind": "slice", "layers": [], "attributes": []}], {})
    for history in ((cut,), (*slimmed("concat").history, cut)):
        with pytest.raises(UserError) as caught:
            Supernet.of(replace(plain, history=history))
        assert str(caught.value) == (
            "the program was changed by 'prune' after its last 'slim', or never had one: its widths are fixed; make it "
            "with: mtlc slim JOB"
        )
    one = replace(slimmed("concat"), tasks=TASKS[:1], ignored_outputs=("semseg",))
    with pytest.raises(UserError, match=r"the widths are those of the tasks depth, semseg, and the program has depth$"):
        Supernet.of(one)


@pytest.mark.parametrize(
    ("layer", "index", "message"),
    [
        ("down.9", 0, "the checkpoint's width table is damaged: AttributeError: "),
        ("deep.0", 40, "the checkpoint's width table is damaged: it has channels that the network does not have"),
    ],
)
def test_a_table_of_another_network_is_one_line(layer, index, message):
    program = slimmed("concat")
    step = copy.deepcopy(supernet_of("concat").table.to_step())
    unit = next(u for u in step["units"] if u["name"] == "deep.0")
    slots = [[channel] for channel in range(unit["channels"])]
    slots[-1] = [index]
    unit["members"][0] = [layer, "out", slots]
    with pytest.raises(UserError) as caught:
        Supernet.of(replace(program, history=(HistoryEntry("slim", {}, [step], {}),)))
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


class DepthwiseHeads(nn.Module):
    """Heads that begin with a depth-wise convolution, which reads what it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.ModuleDict({task.name: nn.Conv2d(16, 16, 3, padding=1, groups=16) for task in TASKS})
        self.heads = wide_networks.Heads(16)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.stem(image))
        return {name: self.heads(torch.relu(first(x)))[name] for name, first in self.first.items()}


def test_what_a_depthwise_layer_reads_narrows_with_it():
    torch.manual_seed(0)
    program = Program(DepthwiseHeads().eval(), TASKS, {"image": torch.randn(2, 3, 8, 8)}, ModelSource("none:none"))
    supernet = Supernet(program, table_of(program))
    wide = torch.randn(2, 16, 8, 8)
    kept = supernet.read("first.depth", supernet.smallest, wide, 1)
    assert torch.equal(kept, wide[:, :8])
    assert supernet.read("stem", supernet.smallest, wide[:, :3], 1).shape[1] == 3
