"""Prunes networks with one difficulty each to a budget, by MACs and by parameters, and loads what was saved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from testkit import tiny_networks
from testkit.pruning import context, run
from testkit.tiny_networks import taught_splits
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.hw.cost.count import workload
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec

TASKS = (TaskSpec("a", "mse", "mse"), TaskSpec("b", "mse", "mse"))


class Odd(nn.Module):
    """A stem, what is odd, and two heads."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        if kind == "packed attention":
            self.attention = nn.MultiheadAttention(24, 3, batch_first=True)
        elif kind == "computed weights":
            self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(24, 48, 3, padding=1))
            self.back = nn.Conv2d(48, 24, 1)
        elif kind == "shared weights":
            self.one, self.two = (nn.Conv2d(24, 24, 3, padding=1, bias=False) for _ in range(2))
            self.two.weight = self.one.weight
        else:
            self.wide, self.back = nn.Conv2d(24, 48, 1), nn.Conv2d(24, 24, 1)
            self.scale = nn.Parameter(torch.rand(24, 1, 1))
            self.register_buffer("shift", torch.rand(24, 1, 1))
        self.heads = nn.ModuleDict(
            {t: nn.Sequential(nn.Conv2d(24, 16, 1), nn.ReLU(), nn.Conv2d(16, 2, 1)) for t in "ab"}
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.stem(image)
        if self.kind == "packed attention":
            tokens = x.flatten(2).mT
            x = x + self.attention(tokens, tokens, tokens, need_weights=False)[0].mT.unflatten(-1, x.shape[2:])
        elif self.kind == "computed weights":
            x = self.back(F.relu(self.normed(x)))
        elif self.kind == "shared weights":
            x = x + self.two(F.relu(self.one(x)))
        else:
            x = x + self.back(self.scale * F.glu(self.wide(x), 1) + self.shift)
        return {task: head(F.relu(x)) for task, head in self.heads.items()}


def odd(kind: str) -> nn.Module:
    torch.manual_seed(4)
    return tiny_networks.random_norms(Odd(kind)).eval()


KINDS = ["packed attention", "computed weights", "shared weights", "gates and scales"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("budget", "share", "more"), [("macs", 0.6, {}), ("params", 0.6, {"method": "uniform", "round_to": 4})]
)
def test_a_budget_is_met_and_the_checkpoint_is_the_network(tmp_path, kind, budget, share, more):
    source = ModelSource(f"{__name__}:odd", {"kind": kind})
    program = Program(odd(kind), TASKS, {"image": torch.randn(2, 3, 8, 8)}, source)
    before = {name: tensor.clone() for name, tensor in program.module.state_dict().items()}
    given = context(program, taught_splits(program, train=16, calibration=8), tmp_path, budget, share)
    result = run(program, given, finetune=None, initial_thres=1000.0, **more)
    assert result.missed is None
    measured = {"macs": workload(result.program).macs, "params": result.program.parameters_count()}
    assert measured[budget] <= given.budget.target
    assert result.cost_claimed == {budget: measured[budget]}
    result.program.save(tmp_path / "saved")
    loaded = Program.load(tmp_path / "saved", replace(source))
    assert tiny_networks.same_state(loaded.module, result.program.module)
    image = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        for one, other in zip(
            loaded.module.eval()(image).values(), result.program.module.eval()(image).values(), strict=True
        ):
            assert torch.equal(one, other)
    if kind == "shared weights":
        assert loaded.module.one.weight is loaded.module.two.weight
    after: dict[str, Any] = program.module.state_dict()  # the network that was given is as it was
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
