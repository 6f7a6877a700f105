"""What decoders read is found in any network, and a student is pulled towards what it lost of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from testkit import tiny_networks
from testkit.tiny_networks import REGRESSION, Fragile, Samples, Stopped, same_state
from torch import Tensor, nn

from mtlc.compress.channels.slicing import inputs_of
from mtlc.compress.training import features
from mtlc.compress.training.features import FeatureRegression, features_read, shared_features
from mtlc.compress.training.train_config import TrainConfig
from mtlc.compress.training.trainer import Trainer, train
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec

FAST = {"batch_size": 4, "augment": False, "precision": "float32"}


class TwoHeads(nn.Module):
    """An encoder of `width` channels; depth reads it through a norm of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.encoder = nn.Conv2d(4, width, 3, padding=1)
        # Two convolutions of its own, the second of which reads no encoder.
        self.depth = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, 5, 1), nn.ReLU(), nn.Conv2d(5, 1, 1))
        self.semseg = nn.Conv2d(width, 3, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.encoder(self.stem(image).relu()).relu()
        return {"depth": self.depth(x), "semseg": self.semseg(x)}


def two_heads(width: int, seed: int = 0, tasks: tuple[TaskSpec, ...] = REGRESSION) -> Program:
    torch.manual_seed(seed)
    example = {"image": torch.randn(2, 3, 8, 8)}
    return Program(TwoHeads(width).eval(), tasks, example, ModelSource("tests:none"))


def test_layers_that_read_the_encoder_are_found():
    """`depth.1` reads the encoder through its norm, `semseg` as it is: two tensors. `depth.3` reads its own decoder."""
    assert features_read(two_heads(6)) == ["depth.1", "semseg"]


def test_layers_that_read_one_tensor_count_once():
    program = two_heads(6)
    program.module.depth[0] = nn.Identity()
    assert features_read(program) == ["depth.1"]


def test_frozen_layers_hide_nothing():
    program = two_heads(6)
    program.module.requires_grad_(False)
    assert features_read(program) == ["depth.1", "semseg"]
    assert not any(p.requires_grad for p in program.module.parameters())


def test_a_single_task_has_features_too():
    program = replace(two_heads(6, tasks=REGRESSION[:1]), ignored_outputs=("semseg",))
    assert features_read(program) == ["depth.1"]


def test_only_layers_that_the_teacher_has_too_are_compared():
    student, teacher = two_heads(4), two_heads(6)
    assert shared_features(student, teacher) == {"depth.1": (1, 4, 6), "semseg": (1, 4, 6)}
    teacher.module.depth = nn.Sequential(teacher.module.depth)  # its layers are now depth.0.1 and so on
    assert shared_features(student, teacher) == {"semseg": (1, 4, 6)}


def test_tensors_of_very_many_channels_are_not_compared(monkeypatch):
    """The map between them would be as large as their square."""
    monkeypatch.setattr(features, "MOST_CHANNELS", 5)
    assert shared_features(two_heads(4), two_heads(6)) == {}
    assert shared_features(two_heads(4), two_heads(5)) == {"depth.1": (1, 4, 5), "semseg": (1, 4, 5)}


def test_a_layer_that_is_skipped_has_no_part_in_the_pull():
    match = FeatureRegression({"a": (1, 3, 5), "b": (1, 3, 5)})
    x, y = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    both = match({"a": x, "b": x}, {"a": y, "b": y})
    each = [match({name: x}, {"a": y, "b": y}) for name in "ab"]
    assert float(both.detach()) == pytest.approx(float(sum(each).detach()) / 2)
    assert float(match({}, {})) == 0


def test_a_linear_map_explains_what_is_linear():
    """Of y = A x all is explained; of noise beside it the share that it has of the variance is left."""
    torch.manual_seed(0)
    x, noise = torch.randn(8, 3, 16, 16), torch.randn(8, 5, 16, 16)
    y = nn.functional.conv2d(x, torch.randn(5, 3, 1, 1)) + 2
    match = FeatureRegression({"layer": (1, 3, 5)}).requires_grad_(False)
    match.fit({"layer": x}, {"layer": y})
    assert float(match({"layer": x}, {"layer": y})) < 1e-5
    mixed = y + noise
    match.fit({"layer": x}, {"layer": mixed})
    share = float(noise.var() / (mixed - mixed.mean((0, 2, 3), keepdim=True)).square().mean())
    # 2,048 positions and 3 channels: the noise's share is known to about 1/√2048.
    assert float(match({"layer": x}, {"layer": mixed})) == pytest.approx(share, rel=0.05)


def test_the_pull_brings_the_features_nearer():
    teacher = two_heads(6, 1)
    data, left = tiny_networks.taught(teacher, 16, 0), {}
    splits = Splits(data, data, data, identity="test")
    image = torch.stack([data[i]["image"] for i in range(16)])
    for weight in (0.0, 20.0):
        student = two_heads(4, 2)
        config = TrainConfig(epochs=10, lr=0.01, ema=0, distill_features=weight, **FAST)
        train(student, splits, Criteria(REGRESSION), config, teacher=teacher)
        match = FeatureRegression({"semseg": (1, 4, 6)})
        with torch.no_grad(), inputs_of(student.module, match.layers) as seen:
            student.module(image)
            with inputs_of(teacher.module, match.layers) as wanted:
                teacher.module(image)
            match.fit(seen, wanted)
            left[weight] = float(match(seen, wanted))
    assert left[20.0] < 0.9 * left[0.0]


@pytest.mark.parametrize("stop", [1, 5])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, stop):
    teacher = two_heads(6, 1)
    tensors = tiny_networks.taught(teacher, 10, 0).tensors
    config = TrainConfig(epochs=4, lr=0.01, distill_features=1.0, checkpoint_seconds=1e-9, **FAST)
    whole, again, lines = two_heads(4, 2), two_heads(4, 2), []

    def run(program: Program, data: Samples, **more: object) -> None:
        splits = Splits(data, Samples(tensors), data, identity="test")
        train(program, splits, Criteria(REGRESSION), config, seed=3, teacher=teacher, **more)

    run(whole, Samples(tensors))
    # Samples are also fetched for the fit, for how large what is said is, twice to see whether they change, and to ask.
    with pytest.raises(Stopped):
        run(two_heads(4, 2), Fragile(tensors, stop + 5), checkpoint=tmp_path / "training")
    run(again, Samples(tensors), checkpoint=tmp_path / "training", log=lines.append)
    assert lines == [f"training goes on from step {stop} of 8"]
    assert same_state(whole.module, again.module)


def test_without_features_it_says_so_once_and_goes_on():
    """The teacher has no layer of the student's names."""
    student = two_heads(4)
    teacher = replace(two_heads(6), module=nn.Sequential(two_heads(6).module))
    data, lines = tiny_networks.taught(two_heads(6), 8, 0), []
    splits = Splits(data, data, data, identity="test")
    config = TrainConfig(epochs=2, distill_features=1.0, **FAST)
    train(student, splits, Criteria(REGRESSION), config, teacher=teacher, log=lines.append)
    assert lines == [
        "distill_features: no decoder reads a tensor of an encoder that the two have in common, "
        "of at most 4096 channels; the training goes on without"
    ]


def test_what_compares_features_is_no_part_of_the_network():
    student, teacher = two_heads(4), two_heads(6)
    names, parameters = list(student.module.state_dict()), len(list(student.module.parameters()))
    data = tiny_networks.taught(teacher, 8, 0)
    splits = Splits(data, data, data, identity="test")
    config = TrainConfig(epochs=1, distill_features=1.0, **FAST)
    trainer = Trainer(student, splits, Criteria(REGRESSION), config, 0, None, teacher)
    assert trainer.teacher is not None
    assert trainer.teacher.features == ("depth.1", "semseg")
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == parameters + 4
    trainer.go(False, lambda line: None)
    assert list(student.module.state_dict()) == names


def test_of_a_network_that_is_all_decoder_it_is_what_the_last_layer_reads():
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1))

        def forward(self, image: Tensor) -> dict[str, Tensor]:
            return {"depth": self.net(image)}

    program = Program(Alone(), REGRESSION[:1], {"image": torch.randn(1, 3, 4, 4)}, ModelSource("tests:none"))
    assert features_read(program) == ["net.2"]
