"""Pulls a network's outputs, and the features that its decoders read, towards those of its uncompressed teacher."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.compress.channels.slicing import inputs_of
from mtlc.compress.training.features import MOST_CHANNELS, FeatureRegression, shared_features
from mtlc.compress.training.lessons import Said
from mtlc.compress.training.train_config import TrainConfig
from mtlc.errors import UserError
from mtlc.program.modes import evaluating
from mtlc.program.outputs import task_outputs
from mtlc.program.program import Program
from mtlc.tasks.task import TaskSpec


class Teacher:
    """A copy of the uncompressed network, and how far a student is from it.

    `features` are the layers of the student whose inputs are compared; `without` says why there are none though the
    settings ask for them. `match` has parameters of its own, which train along and are not part of the network.
    """

    def __init__(self, teacher: Program, student: Program, config: TrainConfig) -> None:
        self.config, self.tasks, self.ignored = config, student.tasks, student.ignored_outputs
        self.without: str | None = None
        self.match: FeatureRegression | None = None
        if config.distill_features:
            try:
                widths = shared_features(student, teacher)
            except UserError as error:
                widths, self.without = {}, str(error)
            if widths:
                self.match = FeatureRegression(widths)
            elif self.without is None:
                self.without = (
                    "no decoder reads a tensor of an encoder that the two have in common, of at most "
                    f"{MOST_CHANNELS} channels"
                )
        self.features: tuple[str, ...] = () if self.match is None else tuple(self.match.layers)
        self.module = copy.deepcopy(teacher.module).eval().requires_grad_(False)

    def to(self, device: torch.device) -> Teacher:
        self.module.to(device)
        if self.match is not None:
            self.match.to(device)
        return self

    def begin(self, student: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Fit what compares the features on one batch, so that the pull begins with what is really lost."""
        if self.match is None:
            return
        with torch.no_grad(), evaluating(student), inputs_of(student, self.features) as seen:
            student(*inputs)
            with inputs_of(self.module, self.features) as targets:
                self.module(*inputs)
        self.match.fit(seen, targets)

    def ask(self, *inputs: Any, autocast: Any) -> Said:
        """The teacher's outputs by task in float32, and what its layers read."""
        with torch.no_grad(), autocast, inputs_of(self.module, self.features) as read:
            tree = self.module(*inputs)
            return {name: t.float() for name, t in task_outputs(tree, self.tasks, self.ignored).items()}, dict(read)

    def loss(self, said: Said, outputs: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> Tensor:
        """The weighted distance from what the teacher has `said` of a student's `outputs` by task, and of what its
        layers have `seen`, a scalar.
        """
        wanted, targets = said
        total = self.config.distill * weighted_distillation(self.tasks, outputs, wanted)
        if self.match is not None:
            total = total + self.config.distill_features * self.match(seen, targets)
        return total


def weighted_distillation(
    tasks: Sequence[TaskSpec], outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]
) -> Tensor:
    """The sum over tasks of their weight times how far their output is from the teacher's."""
    return torch.stack([t.weight * distillation_loss(t, outputs[t.name], targets[t.name]) for t in tasks]).sum()


def distillation_loss(task: TaskSpec, output: Tensor, target: Tensor) -> Tensor:
    """How far an output is from the teacher's, in the terms of the task's loss.

    Class scores: Kullback–Leibler divergence over channels (Hinton et al., 2015, temperature 1). Binary logits:
    cross-entropy with the teacher's probability. Anything else: L1 in units of the teacher's standard deviation.
    """
    if task.loss == "cross_entropy":
        divergence = F.kl_div(F.log_softmax(output, 1), F.log_softmax(target, 1), reduction="none", log_target=True)
        return divergence.sum(1).mean()
    if task.loss in ("balanced_bce", "edge_bce"):
        return F.binary_cross_entropy_with_logits(output, target.sigmoid())
    return (output - target).abs().mean() / target.std().clamp_min(1e-6)
