"""Times by layer of a bundle whose tasks share the trunk's file."""

import pytest
import torch

from mtlc.export import export_bundle
from mtlc.hw.layer_profile import profile_layers
from mtlc.program import ModelSource, Program
from mtlc.tasks import TaskSpec
from mtlc.zoo.m3vit import m3vit

TASKS = {"semseg": 3, "depth": 1, "normals": 2}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(0)
    network = m3vit(
        "micro", tasks=TASKS, width=48, heads=3, blocks=2, head_width=8, image_size=(32, 64), experts=4, top_k=2
    ).eval()
    tasks = tuple(TaskSpec(task, "mse", "mse") for task in TASKS)
    program = Program(network, tasks, {"image": torch.zeros(2, 3, 32, 64)}, ModelSource("mtlc.zoo:m3vit"))
    path = tmp_path_factory.mktemp("shared") / "bundle"
    export_bundle(program, path, samples={"image": torch.randn(6, 3, 32, 64)}, experts="queue", tolerance=1e-2)
    return path


def times(bundle, tasks):
    found = profile_layers(bundle, torch.zeros(1, 3, 32, 64).numpy(), tasks=tasks, rounds=30)
    return {layer["name"]: layer["ms"] for layer in found["layers"]}


@pytest.mark.parametrize("task", list(TASKS))
def test_each_task_has_the_trunks_layers(bundle, task):
    found = times(bundle, task)
    assert found["backbone.blocks.1.mlp.experts"] > 0
    assert {name for name in found if name.endswith(".predict")} == {f"heads.{task}.predict"}


def test_three_tasks_take_the_trunk_three_times_and_the_stem_once(bundle):
    one, three = times(bundle, "depth"), times(bundle, None)
    experts, stem = "backbone.blocks.1.mlp.experts", "backbone.blocks.0.mlp.fc1"
    assert 1.7 < three[experts] / one[experts] < 6
    assert 0.3 < three[stem] / one[stem] < 1.7
