"""Layers that run in training only follow a cut: which inputs are left is told by what they read."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.compress.pruning.training_branches import fit_training_branches
from mtlc.errors import VerificationError
from mtlc.program.program import ModelSource, Program
from mtlc.program.surgery import cut
from mtlc.tasks.task import TaskSpec

IMAGE = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Branched(nn.Module):
    """image ── stem 8 ─┬─ head                     the branch is there in training mode
    └─ norm ── depthwise ── early / pooled ── dense
    """

    def __init__(self, needs_labels: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 1, 1)
        self.norm, self.depthwise, self.early = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 1)
        self.dense, self.dropout = nn.Linear(8, 5), nn.Dropout(0.5)
        self.needs_labels = needs_labels

    def forward(self, image: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        features = torch.relu(self.stem(image))
        outputs = {"depth": self.head(features)}
        if not self.training:
            return outputs
        if self.needs_labels and labels is None:
            raise ValueError("labels are needed in training")
        branch = self.depthwise(self.norm(self.dropout(features)))
        pooled = F.adaptive_avg_pool2d(features, 1).flatten(1)
        return outputs | {"early": self.early(branch), "pooled": self.dense(pooled)}


def program(module: nn.Module) -> Program:
    return Program(module, (TaskSpec("depth", "l1", "rmse"),), {"image": IMAGE[:2]}, ModelSource("test:net"))


def pruned(whole: Program, gone: list[int]) -> Program:
    built = whole.clone()
    cut(built.module, {"kind": "slice", "layers": [["stem", gone, []], ["head", [], gone]], "attributes": []})
    return built


@pytest.mark.parametrize("gone", [[0], [2, 3, 7], [1, 2, 3, 4, 5, 6]])
def test_every_layer_of_a_branch_loses_what_it_read(gone: list[int]) -> None:
    whole = program(Branched().eval())
    built = pruned(whole, gone)
    steps = fit_training_branches(whole, lambda _: nullcontext(), built, {"image": IMAGE})
    layers = {name: (out, into) for step in steps for name, out, into in step["layers"]}
    assert layers == {"norm": (gone, []), "depthwise": (gone, []), "early": ([], gone), "dense": ([], gone)}
    left = [channel for channel in range(8) if channel not in gone]
    assert torch.equal(built.module.early.weight, whole.module.early.weight[:, left])
    assert torch.equal(built.module.norm.running_mean, whole.module.norm.running_mean[left])
    assert not built.module.training
    assert not built.module.norm.training
    found = built.module.train()(IMAGE)
    assert found["early"].shape == (4, 2, 4, 4)
    assert found["pooled"].shape == (4, 5)


def test_the_steps_can_be_replayed() -> None:
    whole = program(Branched().eval())
    built, again = pruned(whole, [2, 5]), pruned(whole, [2, 5])
    for step in fit_training_branches(whole, lambda _: nullcontext(), built, {"image": IMAGE}):
        cut(again.module, step)
    assert all(torch.equal(a, b) for a, b in zip(built.module.parameters(), again.module.parameters(), strict=True))


def test_a_network_that_runs_is_left_alone() -> None:
    whole = program(Branched().eval())
    assert fit_training_branches(whole, lambda _: nullcontext(), whole.clone(), {"image": IMAGE}) == []


def test_a_network_that_never_ran_in_training_is_left_alone() -> None:
    whole = program(Branched(needs_labels=True).eval())
    built = pruned(whole, [2])
    assert fit_training_branches(whole, lambda _: nullcontext(), built, {"image": IMAGE}) == []
    assert built.module.early.in_channels == 8


def test_other_values_are_not_taken_for_the_channels_that_are_left() -> None:
    whole = program(Branched().eval())
    built = pruned(whole, [2])
    with torch.no_grad():
        built.module.stem.weight.mul_(2)
    with pytest.raises(VerificationError, match="layer 'norm' runs in training mode only, and which of its channels"):
        fit_training_branches(whole, lambda _: nullcontext(), built, {"image": IMAGE})
