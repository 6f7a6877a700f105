"""The networks of several classifications: parameters by hand, and what pruning, export and widths make of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from testkit import pruning
from testkit.places import ROOT
from testkit.tiny_networks import Samples, random_norms

from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.compress.pass_interface import Context
from mtlc.compress.passes.registry import pass_type
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits
from mtlc.export import export_bundle
from mtlc.hw.cost.count import workload
from mtlc.job.job import load_job
from mtlc.program.program import ModelSource, Program
from mtlc.program.tensors_file import load_tensors
from mtlc.runtime.session import Session
from mtlc.tasks.task import TaskSpec
from mtlc.zoo import mtl_lenet, mtl_resnet_classifier

TASKS = (TaskSpec("left", "cross_entropy", "accuracy"), TaskSpec("right", "cross_entropy", "accuracy"))
TUNE = {"epochs": 1, "batch_size": 8, "ema": 0.5}
SMALL = {
    "mtl_lenet": {"widths": [16, 24], "hidden": 32},
    "mtl_resnet_classifier": {"widths": [16, 24, 32], "depths": [1, 1, 1], "head_width": 16},
}


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def program(factory: str) -> Program:
    torch.manual_seed(0)
    source = ModelSource(f"mtlc.zoo:{factory}", SMALL[factory])
    module = random_norms(source.build()).eval()
    return Program(module, TASKS, {"image": torch.zeros(2, 1, 36, 36)}, source)


def samples(count: int, seed: int) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    labels = {name: torch.randint(0, 10, (count,), generator=generator) for name in ("left", "right")}
    return Samples({"image": torch.rand(count, 1, 36, 36, generator=generator), **labels})


@pytest.fixture(scope="module")
def splits() -> Splits:
    return Splits(samples(16, 1), samples(8, 2), samples(4, 3))


@pytest.fixture(params=SMALL)
def network(request) -> Program:
    return program(request.param)


def test_the_parameters_of_the_lenet_by_hand():
    """Sener and Koltun's: 260 and 5,020 of the convolutions, 36,050 of the shared layer, 3,060 a head."""
    assert parameters(mtl_lenet()) == 260 + 5020 + 36050 + 2 * 3060 == 47450


def test_the_parameters_of_the_residual_networks():
    """ResNet-18 has 11,176,512 parameters before its last layer (He et al.); here its stem is 3×3, of one channel."""
    assert parameters(mtl_resnet_classifier()) == 262_708
    eighteen = mtl_resnet_classifier(widths=(64, 128, 256, 512), depths=(2, 2, 2, 2))
    assert parameters(eighteen.encoder) == 11_176_512 - 3 * 64 * 49 + 64 * 9
    assert parameters(mtl_resnet_classifier(widths=(32, 64, 128, 256), depths=(2, 2, 2, 2))) == 2_897_012


@pytest.mark.parametrize(("stride", "macs_of_the_stem"), [(1, 36 * 36 * 9 * 16), (2, 18 * 18 * 9 * 16)])
def test_the_stem_keeps_the_resolution_or_halves_it(stride, macs_of_the_stem):
    module = mtl_resnet_classifier(widths=(16,), depths=(1,), head_width=8, stem_stride=stride).eval()
    made = Program(module, TASKS, {"image": torch.zeros(2, 1, 36, 36)}, ModelSource("mtlc.zoo:none"))
    blocks = 2 * 16 * macs_of_the_stem
    assert workload(made).macs == macs_of_the_stem + blocks + 2 * (16 * 8 + 8 * 10)


@pytest.mark.parametrize("name", ["multifashion/train", "multifashion/prune", "facenet/onet", "facenet/rnet"])
def test_the_jobs_of_the_examples_are_valid(name):
    assert load_job(ROOT / f"examples/{name}.toml").tasks


def test_the_weights_of_the_example_fit():
    module = mtl_resnet_classifier()
    load_tensors(module, ROOT / "examples/multifashion/weights/multi.safetensors")
    assert module.encoder.stem.bn.running_var.min() > 0
    assert not torch.equal(module.encoder.stem.bn.running_mean, torch.zeros(32))


def test_outputs_are_scores_a_task():
    outputs = mtl_resnet_classifier(tasks={"breed": 37, "kind": 2}, channels=3)(torch.zeros(3, 3, 64, 64))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {"breed": (3, 37), "kind": (3, 2)}
    outputs = mtl_lenet(tasks={"digit": 10}, size=28)(torch.zeros(2, 1, 28, 28))
    assert outputs["digit"].shape == (2, 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mtl_lenet(size=15), "size = 15: give at least 16 pixels"),
        (lambda: mtl_lenet(widths=(10,)), r"widths = \[10\]: give two"),
        (lambda: mtl_resnet_classifier(widths=(8, 8)), "give one of each for every stage"),
        (lambda: mtl_resnet_classifier(widths=(), depths=()), "give one of each for every stage"),
        (lambda: mtl_lenet({}), "give at least one task"),
        (lambda: mtl_lenet(hidden=0), "1 or more of classes, widths, hidden and channels"),
        (lambda: mtl_resnet_classifier(depths=(1, 0, 1)), "1 or more of classes, widths, depths and channels"),
        (lambda: mtl_resnet_classifier(stem_stride=4), "stem_stride = 4: give 1 or 2"),
    ],
)
def test_a_value_that_cannot_be_is_one_line(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_checkpoint_may_name_them(tmp_path, network):
    network.save(tmp_path / "saved")
    again = Program.load(tmp_path / "saved")
    assert all(torch.equal(a, b) for a, b in zip(network.module.parameters(), again.module.parameters(), strict=True))


def test_they_are_pruned_to_a_budget(tmp_path, network, splits):
    given = pruning.context(network, splits, tmp_path, share=0.6)
    result = pruning.run(network, given, finetune=None, sensitivity=(), recalibrate=0)
    assert result.missed is None
    assert 0.3 * workload(network).macs < workload(result.program).macs <= given.budget.target


def test_every_layer_but_the_last_can_be_cut(network):
    example = (network.example["image"],)
    groups = ChannelGroups(network.module, example, ())
    names = {unit.name for unit in groups.units}
    assert {"heads.left.0", "heads.right.0"} < names
    assert len(names) == (5 if "conv1" in names else 8)
    assert {item.name for item in groups.left_alone} == {"heads.left.2", "heads.right.2"}


def test_a_bundle_gives_the_network_s_outputs(tmp_path: Path, network):
    given = replace(network, preprocessing={"scale": 1 / 255, "mean": [0.0], "std": [1.0], "color": "L"})
    images = samples(5, 9).tensors["image"]
    export_bundle(given, tmp_path / "bundle", samples={"image": images}, provenance={"job": "classifiers.toml"})
    with torch.no_grad():
        expected = network.module(images)
    with Session(tmp_path / "bundle") as session:
        outputs = session.run({"image": images.numpy()})
    for name, output in outputs.items():
        assert abs(output - expected[name].numpy()).max() < 1e-4


def test_their_widths_are_chosen_afterwards(tmp_path, network, splits):
    config = {"round_to": 4, "importance_samples": 8, "recalibrate": 16, "train": TUNE}
    one = pass_type("slim")(pass_type("slim").Config(**config))
    context = Context(splits, Criteria(network.tasks), network, tmp_path)
    one.requires(network, context)
    result = one.run(network, context)
    one.ensures(network, result)
    assert workload(result.program).macs == workload(network).macs
