"""A batch that does not fit in memory is evaluated in halves, with the same outputs; other errors are told."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mtlc.errors import UserError
from mtlc.program.out_of_memory import is_out_of_memory
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec


class Limited(nn.Module):
    """A network that runs on so many samples at once, and counts those of each call."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.head, self.most, self.calls = nn.Conv2d(1, 2, 1), most, list[int]()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.calls.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return {"depth": self.head(x), "flat": self.head(x).reshape(-1, 2)}


def program(most: int) -> Program:
    tasks = (TaskSpec("depth", "l1", "rmse"), TaskSpec("flat", "l1", "rmse"))
    made = Program(Limited(most), tasks, {"image": torch.zeros(1, 1, 4, 4)}, ModelSource("test:net"))
    made.module.eval()
    return made


def test_halves_until_they_fit() -> None:
    x = torch.randn(7, 1, 4, 4)
    made = program(2)
    with torch.no_grad():
        found = made.outputs_on_data({"image": x, "depth": torch.zeros(7)})
        expected = made.module.head(x)
    assert made.module.calls == [7, 3, 1, 2, 4, 2, 2]
    assert torch.equal(found["depth"], expected)
    assert torch.equal(found["flat"], expected.reshape(-1, 2))


def test_one_sample_that_does_not_fit_is_one_line() -> None:
    with (
        torch.no_grad(),
        pytest.raises(UserError, match=r"on the data \(image \(1, 1, 4, 4\)\): .*CUDA out of"),
    ):
        program(0).outputs_on_data({"image": torch.zeros(4, 1, 4, 4)})


def test_not_where_samples_may_know_of_each_other() -> None:
    made = program(2)
    made.module.train()
    with torch.no_grad(), pytest.raises(UserError, match="out of memory"):
        made.outputs_on_data({"image": torch.zeros(4, 1, 4, 4)})
    made.module.eval()
    with pytest.raises(UserError, match="out of memory"):  # what autograd keeps of halves does not fit either
        made.outputs_on_data({"image": torch.zeros(4, 1, 4, 4)})
    assert made.module.calls == [4, 4]


def test_memory_that_runs_out_is_told_from_other_errors() -> None:
    wrapped = UserError("the loss does not fit")
    wrapped.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
    assert is_out_of_memory(wrapped)
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
