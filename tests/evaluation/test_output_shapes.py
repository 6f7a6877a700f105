"""An output whose shape hangs on the data is refused with both shapes and what to return instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlc.errors import UserError
from mtlc.evaluation.output_shapes import check_output_shapes
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec

IMAGE = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)


class Net(nn.Module):
    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"depth": 2 * x, "boxes": self.head(x)}


def program(head: Any) -> Program:
    tasks = (TaskSpec("depth", "l1", "rmse"), TaskSpec("found", "l1", "rmse", output="boxes"))
    return Program(Net(head), tasks, {"image": torch.zeros(2, 1, 4, 4)}, ModelSource("test:net"))


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (lambda x: x[x > 0], "is (8,) for a sample and (0,) for another of the same size"),
        (lambda x: x[x > -1.5], "is (16,) for a sample and (9,) for another of the same size"),
        (lambda x: x[x < 1.5], "is (16,) for a sample and (9,) for another of the same size"),
        (lambda x: torch.nonzero(x > 0.5)[:, 1:].float(), "is (4, 3) for a sample and (0, 3) for another"),
        (
            lambda x: torch.cat([x.flatten(), torch.ones(9)]).topk(5)[0],
            "is (5,) for one sample and (5,) for two of them",
        ),
        (lambda x: x.mean(), "is () for one sample and () for two of them"),
        (lambda x: x.mean(0), "is (1, 4, 4) for one sample and (1, 4, 4) for two of them"),
    ],
)
def test_shapes_that_depend_on_the_data(head, words) -> None:
    with pytest.raises(UserError, match="task 'found': its output 'boxes' ") as raised:
        check_output_shapes(program(head), {"image": IMAGE})
    assert words in str(raised.value)
    assert "return raw maps" in str(raised.value)
    assert "NMS" in str(raised.value)


@pytest.mark.parametrize(
    "head", [lambda x: x, lambda x: x.flatten(1), lambda x: x.reshape(-1, 4), lambda x: x.mean((1, 2, 3))]
)
def test_shapes_that_follow_from_the_input(head) -> None:
    made = program(head)
    made.module.train()
    check_output_shapes(made, {"image": IMAGE})
    assert made.module.training


def test_a_network_that_takes_no_blank_input() -> None:
    def head(x: Tensor) -> Tensor:
        if not x.any():
            raise ValueError("an empty picture")
        return x

    check_output_shapes(program(head), {"image": IMAGE})


def test_indices_have_no_blank() -> None:
    task = TaskSpec("out", "l1", "rmse", output="")
    made = Program(nn.Embedding(9, 4), (task,), {"words": torch.zeros(2, 3, dtype=torch.long)}, ModelSource("test:net"))
    check_output_shapes(made, {"words": torch.tensor([[1, 2, 3]])})
