"""Networks that are random in evaluation mode, often or seldom, and those that are not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.errors import UserError
from mtlc.evaluation.repeatability import check_repeatable
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec

IMAGE = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, noise) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.drop, self.noise, self.calls = nn.Conv2d(3, 2, 1), nn.Dropout(0.5), noise, 0

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        features = self.conv(self.drop(image))
        return {"depth": features, "seg": self.noise(self, features)}


def seldom(net: Net, x: Tensor) -> Tensor:
    """Every fifth run is another: two would not tell."""
    return x + (net.calls % 5 == 0) + 0 * torch.rand(())


def check(noise) -> Net:
    net = Net(noise).train()
    tasks = (TaskSpec("depth", "l1", "rmse"), TaskSpec("seg", "mse", "mse"))
    check_repeatable(Program(net, tasks, {"image": IMAGE}, ModelSource("none:none")), {"image": IMAGE})
    return net


@pytest.mark.parametrize(
    ("noise", "words"),
    [
        (lambda net, x: F.dropout(x, 0.3), "task 'seg' by 0"),
        (lambda net, x: x + 0.01 * torch.randn_like(x), "task 'seg' by 0.0"),
        (lambda net, x: torch.randint(0, 99, (4, 2, 8, 8)), r"by \d+ values"),
        (lambda net, x: x.masked_fill(x > net.calls - 1, float("inf")), "by which values are finite"),
        (seldom, "task 'seg' by 1;"),
        (lambda net, x: x + net.calls, "task 'seg' by 1;"),
        (lambda net, x: x[..., : net.calls], r"by its shape: \(4, 2, 8, 1\) and \(4, 2, 8, 2\)"),
    ],
)
def test_a_forward_that_gives_two_answers_is_refused(noise, words):
    with pytest.raises(UserError, match=rf"in evaluation mode two runs .* differ, .*{words}"):
        check(noise)


def test_dropout_that_asks_is_no_fault():
    net = check(lambda net, x: F.dropout(x, 0.5, net.training))
    assert net.training
    assert net.drop.training


def test_random_numbers_that_change_nothing_rounding_and_nan_are_no_fault():
    assert check(lambda net, x: x + 0 * torch.rand(())).calls == 8
    assert check(lambda net, x: x + 1e-7 * net.calls).calls == 2
    check(lambda net, x: x * float("nan"))
