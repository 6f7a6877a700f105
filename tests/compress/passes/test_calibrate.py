"""Batch-norm statistics measured again: the numbers, and all that must stay."""

from __future__ import annotations

import copy

import pytest
import torch
from testkit import tiny_networks
from testkit.tiny_networks import Samples, same_state
from torch import Tensor, nn

from mtlc.compress.pass_interface import Context
from mtlc.compress.passes.calibrate import Calibrate, CalibrateConfig
from mtlc.compress.training.batch_norm import recalibrate_batchnorm
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec

PICTURES = tiny_networks.images(10, 8, 0)


class Net(nn.Module):
    """A batch norm straight after the image, so that its statistics can be worked out; then dropout."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.drop = nn.Dropout(0.5)
        self.second = nn.BatchNorm2d(3)

    def forward(self, image: Tensor) -> Tensor:
        return self.second(self.drop(self.norm(image)))


def calibrated(module: nn.Module, pictures: Tensor = PICTURES, samples: int = 512, batch_size: int = 4) -> int:
    data = Samples({"image": pictures, "out": pictures})
    task = TaskSpec("out", "mse", "mse", output="")
    program = Program(module, (task,), {"image": pictures[:2]}, ModelSource("none:none"))
    return recalibrate_batchnorm(
        program, Splits(data, Samples({"image": PICTURES}), data, identity="x"), samples, batch_size
    )


def test_the_statistics_are_means_over_the_batches():
    module = Net(nn.BatchNorm2d(3, momentum=0.03)).train()
    module.norm.running_mean.fill_(100.0)
    assert calibrated(module) == 2
    parts = PICTURES.split(4)
    assert [len(part) for part in parts] == [4, 4, 2]  # and each counts as that many
    means = PICTURES.mean((0, 2, 3))
    variances = torch.stack([p.var((0, 2, 3)) * len(p) for p in parts]).sum(0) / 10
    assert torch.allclose(module.norm.running_mean, means, atol=1e-6)
    assert torch.allclose(module.norm.running_var, variances, rtol=1e-5)
    assert module.norm.num_batches_tracked.item() == 3
    assert (module.norm.momentum, module.second.momentum) == (0.03, 0.1)
    assert not any(m.training for m in module.modules())


def test_a_small_last_batch_counts_for_its_samples_only():
    """64 pictures of 0 and 2 of 10, in batches of 64: the mean is 20/66, and not the 5 of two equal batches."""
    pictures = torch.cat([torch.zeros(64, 1, 4, 4), torch.full((2, 1, 4, 4), 10.0)])
    norm = nn.BatchNorm2d(1)
    assert calibrated(norm, pictures, batch_size=64) == 1
    assert float(norm.running_mean) == pytest.approx(20 / 66, abs=1e-6)
    assert float(norm.running_var) == 0.0


def test_a_layer_that_is_called_twice_averages_over_both():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, image: Tensor) -> Tensor:
            self.norm(image[..., :4, :4] + 6)  # a quarter of the values of the second call
            return self.norm(image)

    module = Twice()
    assert calibrated(module) == 1
    expected = (64 * PICTURES.mean((0, 2, 3)) + 16 * (PICTURES[..., :4, :4].mean((0, 2, 3)) + 6)) / 80
    assert torch.allclose(module.norm.running_mean, expected, atol=1e-5)


@pytest.mark.parametrize("kind", [nn.SyncBatchNorm, nn.LazyBatchNorm2d])
def test_every_kind_of_batch_norm_counts(kind):
    usual, other = nn.BatchNorm2d(3), kind() if kind is nn.LazyBatchNorm2d else kind(3)
    other(PICTURES[:2])  # a lazy layer learns its channels
    assert calibrated(usual) == calibrated(other) == 1
    assert torch.equal(usual.running_mean, other.running_mean)
    assert torch.equal(usual.running_var, other.running_var)


def test_instance_norms_that_keep_statistics_count():
    """Their statistics are means over the instances."""
    module = nn.InstanceNorm2d(3, track_running_stats=True)
    module.running_mean.fill_(100.0)
    assert calibrated(module) == 1
    assert torch.allclose(module.running_mean, PICTURES.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(module.running_var, PICTURES.var((2, 3)).mean(0), rtol=1e-5)


def test_a_layer_that_does_not_run_keeps_its_statistics():
    module = Net(nn.BatchNorm2d(3))
    module.auxiliary = nn.BatchNorm2d(3)
    module.auxiliary.running_mean.fill_(0.5)
    before = copy.deepcopy(module.auxiliary)
    assert calibrated(module) == 2
    assert same_state(module.auxiliary, before)


def test_one_value_per_channel_names_the_layer():
    module = Net(nn.BatchNorm2d(3))
    module.second = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(0, 1), nn.Unflatten(0, (1, -1)), Odd())
    with pytest.raises(UserError, match=r"layer 'second.3.norm': .*more than 1 value per channel"):
        calibrated(module)
    assert module.norm.momentum == 0.1


class Odd(nn.Module):
    """A batch norm with a sample of one value, whatever the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten()[:1, None])


@pytest.mark.parametrize(
    ("norm", "pictures", "words"),
    [
        (nn.GroupNorm(1, 3), PICTURES, "no batch norm of the network keeps statistics"),
        (nn.BatchNorm2d(3, track_running_stats=False), PICTURES, "no batch norm of the network keeps statistics"),
        (nn.BatchNorm2d(3), PICTURES[:1], "1 training samples have no variance, give 2 or more"),
    ],
)
def test_the_pass_says_that_it_found_nothing(tmp_path, norm, pictures, words):
    data, full = Samples({"image": pictures}), Samples({"image": PICTURES})
    task = TaskSpec("out", "mse", "mse", output="")
    program = Program(norm, (task,), {"image": PICTURES[:2]}, ModelSource("none:none"))
    lines: list[str] = []
    context = Context(Splits(data, full, full, identity="x"), Criteria([task]), program, tmp_path, log=lines.append)
    result = Calibrate(CalibrateConfig()).run(program, context)
    assert result.report["layers"] == 0
    assert len(lines) == 1
    assert words in lines[0]


def test_dropout_stays_off():
    one, two = Net(nn.BatchNorm2d(3)), Net(nn.BatchNorm2d(3))
    torch.manual_seed(1)
    calibrated(one)
    torch.manual_seed(2)
    calibrated(two)
    assert same_state(one, two)
    assert torch.allclose(one.second.running_mean, torch.zeros(3), atol=0.1)  # dropout would not change the mean,
    assert torch.allclose(one.second.running_var, torch.ones(3), atol=0.2)  # but double the variance


def test_only_so_many_samples_count():
    some, first = Net(nn.BatchNorm2d(3)), Net(nn.BatchNorm2d(3))
    calibrated(some, samples=6)
    calibrated(first, PICTURES[:6])
    assert same_state(some, first)
    assert some.norm.num_batches_tracked.item() == 2


def test_an_odd_sample_at_the_end_is_left_out():
    nine, eight = Net(nn.BatchNorm2d(3)), Net(nn.BatchNorm2d(3))
    calibrated(nine, PICTURES[:9])
    calibrated(eight, PICTURES[:8])
    assert same_state(nine, eight)


@pytest.mark.parametrize(("pictures", "samples"), [(PICTURES[:1], 512), (PICTURES, 1), (PICTURES[:0], 512)])
def test_too_few_samples_leave_the_statistics(pictures, samples):
    """A single sample may have no variance: the statistics of before beat those of a fresh layer."""
    module = Net(nn.BatchNorm2d(3))
    module.norm.running_mean.fill_(0.5)
    before = copy.deepcopy(module)
    data = Samples({"image": pictures})
    full = Samples({"image": PICTURES})
    program = Program(
        module, (TaskSpec("out", "mse", "mse", output=""),), {"image": PICTURES[:2]}, ModelSource("none:none")
    )
    assert recalibrate_batchnorm(program, Splits(data, full, full, identity="x"), samples) == 0
    assert same_state(module, before)


def test_norms_without_statistics_are_left_alone():
    module = Net(nn.GroupNorm(1, 3))
    module.second = nn.BatchNorm2d(3, track_running_stats=False)
    before = copy.deepcopy(module)
    assert calibrated(module) == 0
    assert same_state(module, before)


def test_weights_stay():
    module = tiny_networks.random_norms(Net(nn.BatchNorm2d(3)))
    weights = copy.deepcopy(dict(module.named_parameters()))
    calibrated(module)
    assert all(torch.equal(weights[name], value) for name, value in module.named_parameters())
