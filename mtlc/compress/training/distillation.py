"""Pulls a network's outputs, and the features that its decoders read, towards those of its uncompressed teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.compress.channels.slicing import inputs_of
from mtlc.compress.training.features import MOST_CHANNELS, FeatureRegression, shared_features
from mtlc.compress.training.lessons import Said
from mtlc.compress.training.micro_batches import WHOLE, MicroBatch
from mtlc.compress.training.teacher_spread import TeacherSpread
from mtlc.compress.training.train_config import TrainConfig
from mtlc.detection import Detection
from mtlc.errors import UserError
from mtlc.program.modes import evaluating
from mtlc.program.outputs import task_outputs
from mtlc.program.plain_state import copied
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
        self.module = copied(teacher.module).eval().requires_grad_(False)

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

    def loss(
        self,
        said: Said,
        outputs: Mapping[str, Tensor],
        seen: Mapping[str, Tensor],
        part: MicroBatch = WHOLE,
        apart: TeacherSpread | None = None,
    ) -> Tensor:
        """The weighted distance from what the teacher has `said` of a student's `outputs` by task, and of what its
        layers have `seen`, a scalar: what a `part` of a step's batch adds to the step's.
        """
        wanted, targets = said
        total = self.config.distill * weighted_distillation(self.tasks, outputs, wanted, part, apart)
        if self.match is not None:
            total = total + self.config.distill_features * part.share * self.match(seen, targets, apart)
        return total


def weighted_distillation(
    tasks: Sequence[TaskSpec],
    outputs: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    part: MicroBatch = WHOLE,
    apart: TeacherSpread | None = None,
) -> Tensor:
    """The sum over tasks of their weight times how far their output is from the teacher's: what a `part` of a step's
    batch adds to it.
    """
    return torch.stack(
        [t.weight * part.share_of(t) * distillation_loss(t, outputs[t.name], targets[t.name], apart) for t in tasks]
    ).sum()


def distillation_loss(task: TaskSpec, output: Tensor, target: Tensor, apart: TeacherSpread | None = None) -> Tensor:
    """How far an output is from the teacher's, in the terms of the task's loss.

    Class scores: Kullback–Leibler divergence over channels (Hinton et al., 2015, temperature 1). Binary logits:
    cross-entropy with the teacher's probability. Detections: `detector_distance`. Anything else: L1 in units of the
    teacher's standard deviation, over the samples that `apart` says, by default those of `target`.
    """
    if task.loss == "simota" and task.postprocess is not None:
        return detector_distance(output, target, Detection.parse(task.postprocess))
    if task.loss == "cross_entropy":
        divergence = F.kl_div(F.log_softmax(output, 1), F.log_softmax(target, 1), reduction="none", log_target=True)
        return divergence.sum(1).mean()
    if task.loss in ("balanced_bce", "edge_bce"):
        return F.binary_cross_entropy_with_logits(output, target.sigmoid())
    return (output - target).abs().mean() / (apart or TeacherSpread()).deviation(target).clamp_min(1e-6)


def detector_distance(output: Tensor, target: Tensor, how: Detection) -> Tensor:
    """How far raw detections (N, A, D) are from the teacher's: over the points where the teacher sees something.

    Objectness and classes: cross-entropy with the teacher's probabilities at all points. Boxes: L1 of their four
    numbers, weighted by the teacher's best score there, for where nothing is they mean nothing. Both are sums, divided
    by the sum of these scores: so many points have an object.
    """
    scores = target[..., how.box_columns :].sigmoid().amax(-1)
    if how.objectness:
        scores = scores * target[..., 4].sigmoid()
    count = scores.sum().clamp(min=1)
    entropy = F.binary_cross_entropy_with_logits(output[..., 4:], target[..., 4:].sigmoid(), reduction="sum")
    boxes = ((output[..., :4] - target[..., :4]).abs().mean(-1) * scores).sum()
    return (entropy + boxes) / count
