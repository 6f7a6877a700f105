"""Programs and checkpoints: what is written, what reads back bit for bit, and what is refused by name."""

from __future__ import annotations

import inspect
import json
import pkgutil
from collections import OrderedDict
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from testkit import tiny_networks
from testkit.tiny_networks import TASKS, same_state
from torch import nn

import mtlc.zoo
from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.errors import UserError
from mtlc.program.outputs import flatten_outputs, task_outputs, tensors_in
from mtlc.program.program import ZOO_NETWORKS, HistoryEntry, ModelSource, Program
from mtlc.program.task_modules import TaskOutputs
from mtlc.program.tensors_file import load_tensors
from mtlc.references import resolve
from mtlc.tasks.task import Limit, TaskSpec


def pruned(program: Program, removed: dict[str, list[int]]) -> Program:
    copied = program.clone()
    example = copied.example_inputs()
    steps = ChannelGroups(copied.module, example).prune(removed)
    entry = HistoryEntry("prune", {"round_to": 1}, steps, {"reached": 1.0})
    return copied.after(copied.module, entry)


@pytest.fixture
def program() -> Program:
    tasks = (replace(TASKS[0], max_drop=Limit(0.01, True), weight=2.0), TASKS[1])
    return replace(tiny_networks.chain_program(tasks), preprocessing={"scale": 0.5})


@pytest.fixture
def saved(program, tmp_path) -> Path:
    program.save(tmp_path / "saved")
    return tmp_path / "saved"


def test_surgery_of_several_steps_reads_back_bit_for_bit(program, tmp_path):
    twice = pruned(pruned(program, {"stem.0": [0, 3], "body.0": [23]}), {"body.0": [0, 1]})
    twice.save(tmp_path / "saved")
    with torch.no_grad():  # whatever mode the caller is in
        loaded = Program.load(tmp_path / "saved", program.source)
    assert (loaded.module.stem[0].out_channels, loaded.module.body[0].out_channels) == (14, 21)
    assert same_state(loaded.module, twice.module)
    image = tiny_networks.images(2, 8, 0)
    ours, theirs = twice.outputs({"image": image}), loaded.outputs({"image": image})
    assert all(torch.equal(ours[t], theirs[t]) for t in ours)
    assert loaded.history == twice.history
    assert (loaded.tasks, loaded.preprocessing, loaded.inputs) == (twice.tasks, twice.preprocessing, ("image",))
    assert loaded.example["image"].shape == (2, 3, 8, 8)
    assert not loaded.module.training


def test_frozen_parameters_are_frozen_again(tmp_path):
    source = ModelSource(f"{__name__}:frozen_chain")
    frozen = Program(source.build(), TASKS, {"image": torch.zeros(2, 3, 8, 8)}, source)
    pruned(frozen, {"stem.0": [0]}).save(tmp_path / "saved")
    loaded = Program.load(tmp_path / "saved", source)
    assert not loaded.module.stem[0].weight.requires_grad
    assert loaded.module.body[0].weight.requires_grad


def frozen_chain() -> nn.Module:
    module = tiny_networks.chain()
    module.stem.requires_grad_(False)
    return module


def test_a_checkpoint_holds_json_and_tensors_and_no_pickle(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["model.safetensors", "program.json"]
    data = (saved / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    assert set(json.loads(data[8 : 8 + size])) >= {"stem.0.weight", "stem.1.running_mean", "semseg.bias"}
    described = json.loads((saved / "program.json").read_text())
    assert (described["schema"], described["factory"]) == (1, "testkit.tiny_networks:chain")
    assert described["tasks"][0]["max_drop"] == {"value": 0.01, "relative": True}


def test_saving_again_replaces_the_old_one(program, saved):
    with torch.no_grad():
        program.module.depth.bias.fill_(7.0)
    program.save(saved)
    assert Program.load(saved, program.source).module.depth.bias.item() == 7.0
    assert [path.name for path in saved.parent.iterdir()] == ["saved"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda state: state.pop("body.0.weight"),
            r"has no tensor 'body.0.weight', which the network has; is it of another network\?",
        ),
        (
            lambda state: state.update({"bodi.0.weight": torch.zeros(1)}),
            r"'bodi.0.weight' is not a tensor of the network; did you mean 'body.0.weight'",
        ),
        (
            lambda state: state.update({"depth.weight": torch.zeros(1, 23, 1, 1)}),
            r"depth.weight is \(1, 23, 1, 1\) in the file and \(1, 24, 1, 1\) in the network",
        ),
        (
            lambda state: state["depth.weight"][0, 3].fill_(torch.nan),
            r"depth.weight holds NaN",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(program, saved, edit, message):
    state = load_file(saved / "model.safetensors")
    edit(state)
    save_file(state, saved / "model.safetensors")
    before = program.clone()
    with pytest.raises(UserError, match=message):
        Program.load(saved, program.source)
    with pytest.raises(UserError, match=message):
        load_tensors(program.module, saved / "model.safetensors")
    assert same_state(program.module, before.module)  # nothing was loaded by halves


def test_half_precision_is_widened(program, saved):
    state = load_file(saved / "model.safetensors")
    save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, saved / "model.safetensors")
    loaded = Program.load(saved, program.source).module
    assert loaded.stem[0].weight.dtype == torch.float32
    assert torch.equal(loaded.stem[0].weight, program.module.stem[0].weight.half().float())


def test_a_flipped_bit_of_a_tensor_is_told(program, saved):
    """Any bit: here the lowest of one weight in each part of the file, which nothing else would show."""
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    for place in range(begin, len(whole), 997):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"model.safetensors: (altered or damaged|\S+ holds NaN)"):
            Program.load(saved, program.source)
    path.write_bytes(whole)
    Program.load(saved, program.source)


@pytest.mark.parametrize(
    ("old", "new"), [('"value": 0.01', '"value": 0.11'), ('"weight": 2.0', '"weight": 3.0'), ('"scale"', '"scald"')]
)
def test_a_changed_description_is_told(program, saved, old, new):
    path = saved / "program.json"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=r"program.json: altered or damaged: its SHA-256"):
        Program.load(saved, program.source)


def test_a_checkpoint_of_mtlc_0_1_0_has_no_checksums_and_opens(program, saved):
    described = json.loads((saved / "program.json").read_text())
    del described["sha256"]
    (saved / "program.json").write_text(json.dumps(described))
    save_file(load_file(saved / "model.safetensors"), saved / "model.safetensors")
    assert same_state(Program.load(saved, program.source).module, program.module)


def test_damaged_files(program, saved, tmp_path):
    whole = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model.safetensors: not a readable safetensors file"):
        Program.load(saved, program.source)
    (saved / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.safetensors: no such file"):
        Program.load(saved, program.source)
    description = (saved / "program.json").read_text()
    for text, message in (
        (description[:100], "program.json: damaged: JSONDecodeError"),
        ("[]", "schema None, this mtlc reads 1"),
        (description.replace('"schema": 1', '"schema": 2'), "schema 2, this mtlc reads 1"),
    ):
        (saved / "program.json").write_text(text)
        with pytest.raises(UserError, match=message):
            Program.load(saved, program.source)
    with pytest.raises(UserError, match=r"nothing: not a checkpoint \(no program.json\)"):
        Program.load(tmp_path / "nothing")


WRONG = (None, True, 3, -1, 1.5, "text", [], [1], ["x"], {}, {"a": 1}, {"a": "b"}, [[]], [{}], 10**30)


def test_no_value_anywhere_in_a_description_makes_a_raw_error(saved):
    """Every part of it, at every depth, replaced by every kind of value: it loads, or one line says what is damaged."""
    path = saved / "program.json"
    whole = path.read_text()
    places: list[tuple[object, ...]] = []

    def walk(value: object, place: tuple[object, ...]) -> None:
        places.append(place)
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, part in inner:
            walk(part, (*place, key))

    walk(json.loads(whole), ())
    source = ModelSource("testkit.tiny_networks:chain", {})
    refused: list[str] = []
    for place in places[1:]:
        for wrong in WRONG:
            description = json.loads(whole)
            owner = description
            for key in place[:-1]:
                owner = owner[key]
            owner[place[-1]] = wrong
            path.write_text(json.dumps(description))
            try:
                Program.load(saved, source)
            except UserError as error:
                refused.append(str(error))
    assert len(refused) > len(places)
    assert not any("\n" in line for line in refused)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "damaged: RecursionError"),
        ('{"schema": ' + "9" * 5000 + "}", "damaged: ValueError"),
        ("\ud800", "damaged: UnicodeDecodeError"),
    ],
)
def test_json_that_python_chokes_on(saved, text, message):
    (saved / "program.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=message):
        Program.load(saved)


@pytest.mark.parametrize(
    "factory",
    [
        "testkit.tiny_networks:chain",
        "os:system",
        "mtlc.zoology:evil",
        "mtlc.zooo.x:evil",
        "mtlc.zoo:scenes",
        "mtlc.zoo:nyud",
        "mtlc.zoo.nyud:write_scenes",
        "mtlc.zoo.nyud:atomic_folder",
        "mtlc.zoo.m3vit_checkpoint:import_checkpoint",
        "mtlc.zoo.label_files:Path",
        "mtlc.zoo.m3vit:m3vit ",
    ],
)
def test_a_checkpoint_does_not_choose_the_code_that_runs(saved, factory):
    path = saved / "program.json"
    path.write_text(path.read_text().replace("testkit.tiny_networks:chain", factory))
    with pytest.raises(UserError, match=r"is not from mtlc\.zoo; name the job that trusts it"):
        Program.load(saved)


def test_the_networks_of_the_zoo_are_known_by_name():
    """All functions of ours there that return a network, and none besides; by each name that a checkpoint may have."""
    found = set()
    for module in pkgutil.iter_modules(mtlc.zoo.__path__, "mtlc.zoo."):
        for name, made in vars(import_module(module.name)).items():
            if not name.startswith("_") and inspect.isfunction(made) and made.__module__ == module.name:
                returned = inspect.get_annotations(made, eval_str=True).get("return")
                if inspect.isclass(returned) and issubclass(returned, torch.nn.Module):
                    found |= {f"{module.name}:{name}", f"mtlc.zoo:{name}"}
    assert found == ZOO_NETWORKS
    assert all(callable(resolve(name, "factory")) for name in ZOO_NETWORKS)


def test_the_jobs_factory_must_be_the_checkpoints(saved):
    with pytest.raises(
        UserError,
        match=r"made by factory 'testkit\.tiny_networks:chain', but the job names 'testkit\.tiny_networks:resnet'",
    ):
        Program.load(saved, ModelSource("testkit.tiny_networks:resnet"))


def test_a_zoo_network_loads_without_a_job(tmp_path):
    source = ModelSource(
        "mtlc.zoo:mtl_resnet", {"tasks": {"depth": 1}, "widths": [8, 16], "depths": [1, 1], "decoder_width": 8}
    )
    made = Program(source.build(), TASKS[:1], {"image": torch.zeros(2, 3, 16, 16)}, source)
    made.save(tmp_path / "zoo")
    assert same_state(Program.load(tmp_path / "zoo").module, made.module)


def test_a_factory_must_make_a_module():
    with pytest.raises(UserError, match=r"returned Samples: it must return an nn\.Module"):
        ModelSource("testkit.tiny_networks:Samples", {"tensors": {}}).build()


def test_clones_share_nothing(program):
    other = program.clone()
    with torch.no_grad():
        other.module.depth.bias.add_(1)
    assert not same_state(program.module, other.module)
    assert program.after(other.module, HistoryEntry("x", {}, [], {})).history[0].name == "x"
    assert program.history == ()


def test_parameters_by_hand(program):
    """3·16·9 + 2·16, 16·24·9 + 2·24, 24·1 + 1, 24·3 + 3."""
    assert program.parameters_count() == 432 + 32 + 3456 + 48 + 25 + 75


# -- outputs ---------------------------------------------------------------------------------------------------------

A, B, C = torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([3.0])


@pytest.mark.parametrize(
    ("tree", "keys"),
    [
        (A, {"": A}),
        ((A, B), {"0": A, "1": B}),
        ([A, None, B], {"0": A, "2": B}),
        ({"x": A, "y": B}, {"x": A, "y": B}),
        (OrderedDict(x=A, deep={"y": [B, C]}), {"x": A, "deep.y.0": B, "deep.y.1": C}),
        (({"x": A},), {"0.x": A}),
    ],
)
def test_outputs_of_every_form(tree, keys):
    flat = flatten_outputs(tree)
    assert flat.keys() == keys.keys()
    assert all(flat[key] is keys[key] for key in keys)


@dataclass
class Instances:
    boxes: torch.Tensor
    label: str


def test_what_is_no_tensor_is_passed_over():
    assert flatten_outputs("depth") == flatten_outputs(None) == flatten_outputs([2.0, (True, 3)]) == {}
    flat = flatten_outputs({"depth": A, "meta": "v1", "scale": 2.0, "deep": [None, (B, torch.float32)]})
    assert list(flat) == ["depth", "deep.1.0"]
    assert flatten_outputs({"found": Instances(A, "cat")}) == {"found.boxes": A}


class Dense(NamedTuple):
    depth: torch.Tensor
    found: Instances


def test_fields_of_named_tuples_and_dataclasses_are_keys():
    tree = Dense(A, Instances(B, "cat"))
    assert list(flatten_outputs(tree)) == ["depth", "found.boxes"]
    assert [id(tensor) for tensor in tensors_in({"first": C, "then": tree})] == [id(C), id(A), id(B)]
    # Of a layer's output, which need not hold tensors alone, what is none is passed over.
    assert tensors_in([object(), A]) == [A]


@pytest.mark.parametrize(
    ("tree", "place"), [({"x": [object()]}, "at 'x.0'"), (np.zeros(3), "(of numpy), in"), ({A}, "a set")]
)
def test_outputs_of_no_form(tree, place):
    with pytest.raises(UserError, match="the model returned a ") as raised:
        flatten_outputs(tree)
    assert place in str(raised.value)
    assert "return tensors, alone or in tuples, lists, dicts or dataclasses" in str(raised.value)


def test_tasks_find_their_outputs():
    tasks = (TaskSpec("b", "l1", "rmse", output="1"), TaskSpec("a", "l1", "rmse", output="0"))
    assert list(task_outputs((A, B), tasks).items()) == [("b", B), ("a", A)]
    assert task_outputs(A, [TaskSpec("a", "l1", "rmse", output="")]) == {"a": A}
    assert task_outputs({"aux": {"x": A}}, [TaskSpec("x", "l1", "rmse", output="aux.x")]) == {"x": A}


def test_outputs_without_a_task_and_tasks_without_an_output():
    depth = TaskSpec("depth", "l1", "rmse")
    with pytest.raises(UserError, match="task 'depth': the model has no output 'depth'; did you mean 'depths'"):
        task_outputs({"depths": A}, [depth])
    with pytest.raises(UserError, match="the model's output 'aux' maps to no task"):
        task_outputs({"depth": A, "aux": B}, [depth])
    assert task_outputs({"depth": A, "aux": B}, [depth], ["aux"]) == {"depth": A}
    with pytest.raises(UserError, match="'depth': it returns no tensor"):
        task_outputs("v1", [depth])
    with pytest.raises(UserError, match='it returns one tensor: output = ""'):
        task_outputs(A, [depth])
    lone = TaskSpec("depth", "l1", "rmse", output="")
    with pytest.raises(UserError, match=r"the model has no output ''; it returns '0' \(\d.*\), '1' \("):
        task_outputs((A, B), [lone])


@pytest.mark.parametrize("ignored", ["deep", "deep.*", "deep.y"])
def test_outputs_are_ignored_with_all_that_lies_in_them(ignored):
    depth = TaskSpec("depth", "l1", "rmse")
    assert task_outputs({"depth": A, "deep": {"y": [B, C]}}, [depth], [ignored]) == {"depth": A}
    with pytest.raises(UserError, match="output 'deeper' maps to no task"):
        task_outputs({"depth": A, "deeper": B}, [depth], [ignored])


def test_training_mode_has_outputs_of_its_own():
    seg = TaskSpec("seg", "l1", "rmse", output="", training_output="0")
    aux = TaskSpec("aux", "l1", "", output="1", training_only=True)
    assert task_outputs(A, [seg]) == {"seg": A}
    assert task_outputs((A, B, C), [seg, aux], training=True) == {"seg": A, "aux": B}
    with pytest.raises(UserError, match=r"no output '0'; .*which: training_output"):
        task_outputs(A, [seg], training=True)


def test_what_exporters_see_follows_the_tasks_order(program):
    swapped = replace(program, tasks=program.tasks[::-1])
    image = tiny_networks.images(2, 8, 0)
    first, second = TaskOutputs(swapped)(image)
    assert torch.equal(first, program.outputs({"image": image})["semseg"])
    assert second.shape == (2, 1, 8, 8)


def test_two_tasks_of_one_name(program):
    with pytest.raises(UserError, match="task 'depth' is named twice"):
        replace(program, tasks=(TASKS[0], TASKS[0]))
