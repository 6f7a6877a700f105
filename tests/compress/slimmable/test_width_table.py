"""Which channel group follows which width: stages, decoders, what is refused, and the way to a checkpoint and back."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit import tiny_networks, wide_networks
from testkit.wide_networks import program_of, supernet_of, table_of
from torch import Tensor, nn

from mtlc.compress.channels.unit import Member, Unit
from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.layer_places import Place
from mtlc.compress.slimmable.width_table import WidthTable, build_table
from mtlc.errors import UserError
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec


def names(table: WidthTable, group: str) -> list[str]:
    return [unit.name for unit in table.of(group)]


def unit(name: str, channels: int, layers: Sequence[str] = (), **settings: Any) -> Unit:
    """A unit whose `layers` (its name, by default) produce its channels."""
    slots = tuple((c,) for c in range(channels))
    return Unit(name, channels, tuple(Member(layer, "out", slots) for layer in layers or (name,)), True, **settings)


def placed(**positions: int) -> dict[str, Place]:
    """Places in this order, needed by both tasks; a layer that starts with a task's letter and "_" is that task's."""
    tasks = {"a": frozenset("a"), "b": frozenset("b")}
    return {
        name: Place(order, count, tasks.get(name.split("_")[0], frozenset("ab")))
        for order, (name, count) in enumerate(positions.items())
    }


def built(units: Sequence[Unit], places: dict[str, Place], **settings: Any) -> WidthTable:
    return build_table(units, places, ("a", "b"), (0.5, 1.0), 1, **settings)


def test_stages_are_resolutions():
    table = supernet_of("resnet").table
    assert table.groups == ("stage1", "stage2", "stage3", "depth", "semseg")
    for index, stage in enumerate(table.stages):
        assert names(table, stage) == [f"encoder.stages.{index}.0.conv{k}.conv" for k in (1, 2)]
    for task in table.tasks:
        assert names(table, task) == [f"decoders.{task}.{n}" for n in ("laterals.0", "laterals.1", "smooth.0.conv")]


def test_an_encoder_of_one_resolution_is_divided_into_runs():
    table = supernet_of("m3vit").table
    assert {stage: names(table, stage) for stage in table.stages} == {
        f"stage{i + 1}": [
            f"backbone.blocks.{i}.attn", f"backbone.blocks.{i}.mlp.{'experts' if i % 2 else 'fc1'}",
        ]
        for i in range(4)
    }  # fmt: skip
    assert names(table, "depth") == ["heads.depth.convs.0", "heads.depth.convs.1"]


@pytest.mark.parametrize(("count", "stages"), [(1, 1), (3, 3), (4, 4), (6, 4), (9, 4)])
def test_runs_of_equally_many_units(count, stages):
    units = [unit(f"e{i}", 8) for i in range(count)]
    table = built(units, placed(**{f"e{i}": 16 for i in range(count)}))
    sizes = [len(table.of(stage)) for stage in table.stages]
    assert len(sizes) == stages
    assert max(sizes) - min(sizes) <= 1
    assert [name for stage in table.stages for name in names(table, stage)] == [u.name for u in units]


def test_a_residual_stream_through_an_even_encoder_has_its_own_width():
    units = [unit("embed", 8, ("embed", "o1", "o2")), unit("m1", 8), unit("m2", 8)]
    table = built(units, placed(embed=16, m1=16, o1=16, m2=16, o2=16))
    assert {stage: names(table, stage) for stage in table.stages} == {
        "stream": ["embed"], "stage1": ["m1"], "stage2": ["m2"],
    }  # fmt: skip
    assert table.stages[0] == "stream"


def test_gates_stand_where_they_are_used():
    """What runs on one pooled position is in the stage of the layers before it."""
    units = [unit(name, 8) for name in ("first", "gate1", "second", "gate2", "pooled")]
    table = built(units, placed(first=64, gate1=1, second=16, gate2=1, pooled=1))
    assert {stage: names(table, stage) for stage in table.stages} == {
        "stage1": ["first", "gate1"], "stage2": ["second", "gate2", "pooled"],
    }  # fmt: skip
    flat = built(units, placed(first=1, gate1=1, second=1, gate2=1, pooled=1))
    assert [len(flat.of(stage)) for stage in flat.stages] == [2, 1, 1, 1]


def test_who_needs_the_makers_decides_and_not_who_reads():
    mixed = Unit("e", 8, (Member("e", "out", ((0,),) * 8), Member("a_head", "in", ((0,),) * 8)), True)
    shared = unit("a_1", 8, ("a_1", "b_1"))
    table = built([mixed, shared, unit("a_2", 8)], placed(e=16, a_1=16, b_1=16, a_2=16, a_head=16))
    assert table.group_of == {"e": "stage1", "a_1": "stage2", "a_2": "a"}


def test_a_network_of_one_task_is_all_encoder():
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 1, 1))

        def forward(self, image: Tensor) -> Tensor:
            return self.body(image)

    task = TaskSpec("depth", "mse", "mse", output="")
    program = Program(One().eval(), (task,), {"image": torch.zeros(1, 3, 8, 8)}, ModelSource("none:none"))
    table = table_of(program)
    assert (names(table, "stage1"), names(table, "stage2")) == (["body.0"], ["body.1"])
    assert table.options("depth") == (1.0,)
    assert table.smallest == Configuration((0.5, 0.5), (1.0,))


def test_stages_of_the_job():
    program = program_of("resnet")
    stages = {"late": ("encoder.stages.[12].*",), "early": ("encoder.stages.0*conv1.conv",)}
    table = table_of(program, stages=stages)
    assert table.stages == ("late", "early")
    assert names(table, "early") == ["encoder.stages.0.0.conv1.conv"]
    assert len(names(table, "late")) == 4
    left = {item.name: item.why for item in table.left_alone}
    assert left["encoder.stages.0.0.conv2.conv"] == "in none of the job's stages"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"a1": ("encoder.stages.*",), "b1": ("no.such*", "x")},
         "stages.b1: no.such*, x matches no channel group of the encoder"),
        ({"one": ("decoders.*",)}, "stages.one: decoders.* matches no channel group of the encoder"),
        ({"depth": ("encoder.*",)}, "stages: 'depth' is the name of a task; name the stage otherwise"),
    ],
)  # fmt: skip
def test_stages_that_are_none(stages, message):
    with pytest.raises(UserError) as caught:
        table_of(program_of("resnet"), stages=stages)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("ignore", "round_to", "message"),
    [
        (
            (), 16,
            "stage1 is too narrow for width 0.25: its widest channel group, encoder.stages.0.0.conv1.conv, "
            "has 16 channels, "
            "all of them kept in steps of 16; lower round_to, or list its layers in ignore",
        ),
        (
            ("encoder.*",), 16,
            "depth is too narrow for width 0.25: its widest channel group, decoders.depth.laterals.0, has 16 channels, "
            "all of them kept in steps of 16; lower round_to, or list its layers in ignore",
        ),
    ],
)  # fmt: skip
def test_a_group_that_is_too_narrow_is_one_line(ignore, round_to, message):
    with pytest.raises(UserError) as caught:
        table_of(program_of("resnet"), round_to=round_to, ignore=ignore)
    assert str(caught.value) == message


def test_too_few_heads_are_told_as_heads():
    heads = unit("attn", 2, kind="heads", width=4)
    with pytest.raises(
        UserError, match=r"^stage1 is too narrow for width 0.5: .*, attn, has 2 heads, all of them kept"
    ):
        build_table([heads], placed(attn=16), ("a", "b"), (0.5, 1.0), 8)


def test_nothing_to_make_slim():
    with pytest.raises(UserError, match=r"^no channel group of the network can be made slim"):
        table_of(program_of("resnet"), ignore=("encoder.*", "decoders.*"))
    table = built([unit("e", 8)], placed(e=4))
    with pytest.raises(UserError, match=r"^no channel group of the network can be made slim: e: it breaks$"):
        table.without({"e": "it breaks"})


def test_without_a_unit_its_stage_may_go_and_the_reason_stays():
    table = built([unit("e", 8), unit("f", 8), unit("a_1", 8)], placed(e=16, f=4, a_1=4))
    less = table.without({"f": "it breaks"})
    assert less.stages == ("stage1",)
    assert [(item.name, item.channels, item.why) for item in less.left_alone] == [("f", 8, "it breaks")]
    assert less.smallest == Configuration((0.5,), (0.5, 1.0))
    assert less.width_of(less.largest) == {"stage1": 1.0, "a": 1.0, "b": 1.0}


def test_options_are_the_widths_that_differ():
    """Of 16 channels in steps of 8, widths 0.25 and 0.5 keep the same 8: one of them is left, the larger."""
    table = supernet_of("resnet").table
    assert table.options("stage1") == (0.5, 1.0)
    assert table.options("stage2") == (0.25, 0.5, 1.0)
    for network in wide_networks.NETWORKS:
        table = supernet_of(network).table
        for group in table.groups:
            kept = [tuple(table.kept(u, w) for u in table.of(group)) for w in table.options(group)]
            assert len(set(kept)) == len(kept)
            assert kept == sorted(kept)
            assert {tuple(table.kept(u, w) for u in table.of(group)) for w in table.widths} == set(kept)
        assert table.removed(table.largest) == {}


def test_one_width_for_all_is_the_next_wider_where_a_group_lacks_it():
    table = supernet_of("resnet").table  # its first stage has no 0.25
    assert table.uniform(0.25) == Configuration((0.5, 0.25, 0.25), table.smallest.decoders)
    assert table.uniform(1.0) == table.largest
    assert all(table.has(table.uniform(width)) for width in table.widths)
    assert not table.has(Configuration((0.25, 0.25, 0.25), table.smallest.decoders))
    assert not table.has(Configuration((1.0,), (1.0,)))


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        (
            Configuration((1.0,), (1.0, 1.0)),
            "a configuration of this network has 3 encoder widths and 2 decoder widths, not 1 and 2",
        ),
        (Configuration((1.0, 1.0, 0.3), (1.0, 1.0)), "stage3: width 0.3 was not trained; the widths are 0.25, 0.5, 1"),
        (Configuration((1.0, 1.0, 1.0), (1.0, 2.0)), "semseg: width 2 was not trained; the widths are 0.25, 0.5, 1"),
    ],
)
def test_configurations_that_are_none(configuration, message):
    with pytest.raises(UserError) as caught:
        supernet_of("resnet").table.kept_counts(configuration)
    assert str(caught.value) == message


@pytest.mark.parametrize("network", wide_networks.NETWORKS)
def test_a_checkpoint_gives_the_table_back(network):
    table = supernet_of(network).table
    step = json.loads(json.dumps(table.to_step(), allow_nan=False))
    again = WidthTable.from_step(step)
    units = tuple(replace(unit, maskable=True) for unit in table.units)  # which only pruning asks
    assert again == replace(table, units=units)
    assert again.to_step() == table.to_step()
    assert again.kept_counts(table.smallest) == table.kept_counts(table.smallest)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from leaves(inner, (*path, key))


STEP = json.loads(json.dumps(supernet_of("grouped").table.to_step()))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(leaves(STEP))), st.sampled_from(["gone", None, -1, 3, 0.3, "x", [], {}, [[]], True]))
def test_a_damaged_table_is_one_line_or_still_a_table(path, damage):
    step = copy.deepcopy(STEP)
    owner = step
    for key in path[:-1]:
        owner = owner[key]
    if damage == "gone":
        del owner[path[-1]]
    else:
        owner[path[-1]] = damage
    refusal = ""
    try:
        table = WidthTable.from_step(step)
        table.kept_counts(table.smallest)
    except UserError as error:
        refusal = str(error)
    assert len(refusal.splitlines()) <= 1


def test_what_is_damaged_is_said():
    step = copy.deepcopy(STEP)
    del step["units"][0]["members"]
    with pytest.raises(UserError, match=r"^the checkpoint's width table is damaged: KeyError: 'members'$"):
        WidthTable.from_step(step)


def test_indices_are_kept_short():
    member = STEP["units"][0]["members"][0]
    assert member[2] == {"start": 0, "per": 1, "channels": 16}
    fused = supernet_of("m3vit").table.to_step()["units"]
    rows = next(m[2] for u in fused for m in u["members"] if m[0].endswith("attn.qkv"))
    assert rows[1] == [*range(16, 32), *range(64, 80), *range(112, 128)]


def test_tables_of_tiny_networks_need_smaller_steps():
    program = tiny_networks.chain_program()
    table = table_of(program, widths=(0.25, 0.5, 0.75, 1.0), round_to=4)
    assert table.options("stage1") == (0.25, 0.5, 0.75, 1.0)
    assert {task: table.options(task) for task in table.tasks} == {"depth": (1.0,), "semseg": (1.0,)}
