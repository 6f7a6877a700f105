"""No operator of torch's stops a count: those without a rule are named, and only a foreign kernel is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.errors import UserError
from mtlc.hw.cost.count import macs, workload
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec


class Runs(nn.Module):
    """A network of one function of its input, with constants beside it."""

    def __init__(self, function: Any, **constants: Any) -> None:
        super().__init__()
        self.function = function
        for name, value in constants.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.function(self, x)
        return result


def program(function: Any, x: Tensor, **constants: Any) -> Program:
    task = TaskSpec("out", "mse", "mse", output="")
    return Program(Runs(function, **constants), (task,), {"x": x}, ModelSource("test:net"))


@pytest.mark.parametrize(
    ("function", "shape", "expected"),
    [
        (lambda m, x: torch.cdist(x, x), (2, 5, 7), 2 * 5 * 5 * 7),
        (lambda m, x: F.bilinear(x, x, m.weight), (3, 4), 3 * 6 * 4 * 4),
        (lambda m, x: torch.einsum("bij,bjk->bik", x, x), (2, 4, 4), 2 * 4 * 4 * 4),
        (lambda m, x: torch.conv_tbc(x, m.taps, m.bias), (9, 2, 4), 7 * 2 * 3 * 4 * 5),
    ],
    ids=["distances", "bilinear", "einsum", "time convolution"],
)  # fmt: skip
def test_products_by_hand(function, shape, expected) -> None:
    constants = {"weight": nn.Parameter(torch.zeros(6, 4, 4)), "taps": torch.zeros(3, 4, 5), "bias": torch.zeros(5)}
    made = program(function, torch.zeros(shape), **constants)
    assert workload(made, shape[0]).macs == expected


@pytest.mark.parametrize(
    ("function", "name", "kind"),
    [
        (lambda m, x: torch.fft.fft(x).real, "aten._fft_r2c", "elementwise"),
        (lambda m, x: torch.block_diag(x[0], x[1]), "aten.block_diag", "copy"),
        (lambda m, x: torch.trace(x[0])[None, None], "aten.trace", "reduction"),
    ],
)
def test_what_has_no_rule_is_named(function, name, kind) -> None:
    cost = workload(program(function, torch.eye(4).expand(2, 4, 4).contiguous()), 2)
    assert cost.macs == 0
    assert cost.assumed() == {(name, kind): ("",)}


def test_rules_assume_nothing() -> None:
    cost = workload(
        program(lambda m, x: torch.relu(F.conv2d(x, m.w)).mean(1), torch.zeros(1, 2, 5, 5), w=torch.zeros(3, 2, 3, 3))
    )
    assert cost.macs == 3 * 2 * 9 * 9
    assert cost.assumed() == {}


def test_a_plain_tensor_is_a_constant_like_any_buffer() -> None:
    """Its views are views: an ``aten.select`` of it is no operator without a rule."""
    cost = workload(program(lambda m, x: x * m.stride[0], torch.zeros(1, 3), stride=torch.tensor([8.0, 16.0])))
    assert [operator.kind for operator in cost.operators] == ["elementwise"]
    shared = torch.tensor([8.0, 16.0])
    cost = workload(program(lambda m, x: x * shared[1:], torch.zeros(1, 3)))
    assert cost.assumed() == {}


@pytest.mark.parametrize("described", [True, False], ids=["with shapes", "without"])
def test_a_foreign_kernel_is_refused_by_name(described: bool) -> None:
    name = f"twist_{described}".lower()

    @torch.library.custom_op(f"mtlc_costs::{name}", mutates_args=())
    def twist(x: Tensor) -> Tensor:
        return x * 2

    if described:
        twist.register_fake(torch.empty_like)
    with pytest.raises(UserError, match=rf"no cost rule for the operator mtlc_costs\.{name}\.default, which is not"):
        workload(program(lambda m, x: twist(x), torch.zeros(1, 3)))


def test_a_foreign_kernel_that_writes_into_its_argument_is_not_free() -> None:
    @torch.library.custom_op("mtlc_costs::fill", mutates_args=("out",))
    def fill(x: Tensor, out: Tensor) -> None:
        out.copy_(x)

    def run(m: nn.Module, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        fill(x, out)
        return out

    with pytest.raises(UserError, match=r"no cost rule for the operator mtlc_costs\.fill"):
        workload(program(run, torch.zeros(1, 3)))


def test_numbers_of_its_own_do_not_make_a_network_data_dependent() -> None:
    """Sizes that are kept in tensors: they are read, and no input has a part in them."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        sizes = torch.as_tensor([[2, 3], [1, 4]])
        assert int(sizes.prod(1).sum()) == x.shape[1]
        first, _ = x.split(sizes.prod(1).tolist(), 1)
        return first[:, : int(m.stride.max())] @ m.w

    made = program(run, torch.zeros(1, 10), stride=torch.tensor([3.0, 5.0]), w=nn.Parameter(torch.zeros(5, 7)))
    assert macs(made) == 5 * 7
    cost = workload(made)
    assert cost.parameters == 35


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: x[x > 0][None],
        lambda m, x: torch.nonzero(x).float(),
        lambda m, x: x if float(x.sum()) > 1 else 2 * x,
        lambda m, x: x[:, : int(x.argmax()) + 1],
    ],
    ids=["mask", "nonzero", "branch", "slice"],
)
def test_what_depends_on_the_input_is_refused(run) -> None:
    with pytest.raises(UserError, match=r"the shapes or the control flow after aten\.\w+\.\w+ depend on the data"):
        workload(program(run, torch.zeros(1, 4)))


@pytest.mark.parametrize(
    "run",
    [lambda m, x: x[:, m.chosen], lambda m, x: x[:, m.chosen.nonzero()[:, 0]], lambda m, x: x[:, torch.arange(4) > 1]],
)
def test_a_mask_of_its_own_is_no_data(run) -> None:
    made = program(
        lambda m, x: run(m, x) @ m.w,
        torch.zeros(1, 4),
        chosen=torch.tensor([True, False, True, False]),
        w=torch.zeros(2, 3),
    )
    assert macs(made) == 6
