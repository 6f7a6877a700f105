"""Batch-norm statistics measured again: the numbers, and all that must stay."""

from __future__ import annotations

import copy

import pytest
import torch
from testkit import tiny_networks
from testkit.tiny_networks import Samples, same_state
from torch import Tensor, nn

from mtlc.compress.training.batch_norm import recalibrate_batchnorm
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
    means = torch.stack([p.mean((0, 2, 3)) for p in parts]).mean(0)
    variances = torch.stack([p.var((0, 2, 3)) for p in parts]).mean(0)
    assert torch.allclose(module.norm.running_mean, means, atol=1e-6)
    assert torch.allclose(module.norm.running_var, variances, rtol=1e-5)
    assert module.norm.num_batches_tracked.item() == 3
    assert (module.norm.momentum, module.second.momentum) == (0.03, 0.1)
    assert not any(m.training for m in module.modules())


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
