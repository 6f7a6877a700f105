"""Losses and metrics over a split, against sums by hand."""

from __future__ import annotations

import math

import pytest
import torch
from testkit import tiny_networks
from testkit.tiny_networks import Samples
from torch import nn

from mtlc.errors import UserError
from mtlc.evaluation.constant_predictor import constant_metrics
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec

DEPTH = TaskSpec("depth", "mse", "rmse")
SEG = TaskSpec("seg", "cross_entropy", "accuracy", target="labels")


class Fixed(nn.Module):
    """Depth is the image; the class scores are (image, 0)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, image):
        return {"depth": image, "seg": torch.cat([image, torch.zeros_like(image)], 1)}


IMAGES = torch.tensor([1.0, 2.0, -3.0])[:, None, None, None]
DATA = Samples(
    {"image": IMAGES, "depth": torch.full((3, 1, 1, 1), 1.0), "labels": torch.zeros(3, 1, 1, dtype=torch.long)}
)
PROGRAM = Program(Fixed(), (DEPTH, SEG), {"image": IMAGES[:2]}, ModelSource("none:none"))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_means_are_weighted_by_the_batches_sizes(batch_size):
    """The last batch is shorter: its samples count as much as any."""
    result = evaluate(PROGRAM, Criteria(PROGRAM.tasks), DATA, batch_size)
    entropy = [math.log(1 + math.exp(-x)) for x in (1.0, 2.0, -3.0)]
    assert result.losses == pytest.approx({"depth": (0 + 1 + 16) / 3, "seg": sum(entropy) / 3}, rel=1e-6)
    assert result.metrics == pytest.approx({"depth": math.sqrt(17 / 3), "seg": 100 * 2 / 3}, rel=1e-6)
    assert set(result.details) == {"depth", "seg"}


def test_a_limit_on_the_samples():
    result = evaluate(PROGRAM, Criteria(PROGRAM.tasks), DATA, 2, limit=1)
    assert result.losses["depth"] == 0.0
    assert result.metrics["seg"] == 100.0


def test_the_mode_is_kept_and_statistics_are_not_touched():
    program = tiny_networks.chain_program(tiny_networks.REGRESSION)
    data = tiny_networks.taught(program, 4, 0)
    program.module.train()
    before = program.clone()
    losses = evaluate(program, Criteria(program.tasks), data).losses
    assert program.module.training
    assert tiny_networks.same_state(program.module, before.module)
    program.module.eval()
    assert evaluate(program, Criteria(program.tasks), data).losses == losses


def test_anything_that_gives_outputs_can_be_judged():
    result = evaluate(
        lambda batch: {"depth": batch["depth"] + 2, "seg": -9 + torch.eye(2)[batch["labels"]].permute(0, 3, 1, 2)},
        Criteria(PROGRAM.tasks),
        DATA,
    )
    assert result.losses["depth"] == 4.0
    assert result.metrics == {"depth": 2.0, "seg": 100.0}


def test_what_metrics_say_of_themselves():
    criteria = Criteria(PROGRAM.tasks)
    assert criteria.higher_is_better == {"depth": False, "seg": True}
    assert criteria.units == {"depth": "m", "seg": "%"}
    assert criteria.kinds == {"depth": "scalar", "seg": "labels"}


def test_a_loss_that_is_no_number_names_its_task():
    data = Samples({**DATA.tensors, "depth": torch.tensor([1.0, math.inf, 1.0])[:, None, None, None]})
    with pytest.raises(UserError, match="task 'depth': its loss on the data is inf"):
        evaluate(PROGRAM, Criteria(PROGRAM.tasks), data)


def test_labels_that_are_missing_or_do_not_fit():
    without = Samples({k: v for k, v in DATA.tensors.items() if k != "labels"})
    with pytest.raises(UserError, match=r"\[tasks.seg\] the data has no 'labels'; its keys: depth, image"):
        evaluate(PROGRAM, Criteria(PROGRAM.tasks), without)
    wide = Samples({**DATA.tensors, "depth": torch.zeros(3, 1, 2, 2)})
    with pytest.raises(UserError, match=r"\[tasks.depth\] loss = 'mse'.*\(3, 1, 1, 1\).*\(3, 1, 2, 2\)"):
        evaluate(PROGRAM, Criteria(PROGRAM.tasks), wide)


def broken(output, target):
    raise RuntimeError("no such kernel\nsecond line")


def test_a_loss_of_ones_own_that_fails():
    task = TaskSpec("depth", f"{__name__}:broken", "rmse")
    with pytest.raises(UserError, match=r"\[tasks.depth\].*does not fit: output \(3, 1, 1, 1\).*: no such kernel$"):
        Criteria([task]).loss(task, IMAGES, DATA.batch([0, 1, 2]))


def test_a_metric_that_does_not_take_its_settings():
    with pytest.raises(UserError, match=r"\[tasks.depth\] metric = 'rmse' does not take"):
        Criteria([TaskSpec("depth", "l1", "rmse", metric_args={"colour": 1})])


def test_constant_predictors_by_hand():
    tasks = (
        TaskSpec("depth", "l1", "rmse"),
        TaskSpec("classes", "cross_entropy", "accuracy"),
        TaskSpec("sal", "balanced_bce", "max_jaccard"),
    )

    class Labels(torch.utils.data.Dataset):
        """Depths 1 and 3 and an invalid 0; three of four pixels are of class 1; one of four is salient."""

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {
                "image": torch.zeros(1, 2, 2),
                "depth": torch.tensor([[[1.0, 3.0], [0.0, 1.0]]])
                if index
                else torch.tensor([[[3.0, 1.0], [3.0, 0.0]]]),
                "classes": torch.tensor([[1, 1], [0, 1]]),
                "sal": torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]),
            }

    found = constant_metrics(Criteria(tasks), Labels(), Labels())
    assert found["depth"] == pytest.approx(1.0)  # the mean of the valid depths is 2, each is 1 away
    assert found["classes"] == pytest.approx(75.0)
    assert found["sal"] == pytest.approx(25.0)  # "everywhere": a quarter of each image is right


def test_a_task_says_which_label_does_not_count():
    """Two classes, labels 0, 1 and 7, which is no class: loss and metric leave out the same elements."""
    data = Samples({"image": IMAGES, "labels": torch.tensor([0, 1, 7]).view(3, 1, 1)})
    seg = TaskSpec("seg", "cross_entropy", "accuracy", target="labels", ignore=7)
    program = Program(PROGRAM.module, (seg,), PROGRAM.example, ModelSource("none:none"), ignored_outputs=("depth",))
    result = evaluate(program, Criteria([seg]), data)
    assert result.losses["seg"] == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2)
    assert result.metrics["seg"] == 50
    assert constant_metrics(Criteria([seg]), data, data, channels={"seg": 2})["seg"] == 50


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (TaskSpec("depth", "l1", "rmse", ignore=0), r"\[tasks.depth\] ignore = 0: loss 'l1' takes no ignore_index"),
        (
            TaskSpec("seg", "cross_entropy", "mse", ignore=0),
            r"\[tasks.seg\] ignore = 0: metric 'mse' takes no ignore_index",
        ),
        (
            TaskSpec("seg", "testkit.tiny_networks:thousand_l1", "accuracy", ignore=0),
            r"loss 'testkit.tiny_networks:thousand_l1' takes no ignore_index",
        ),
        (
            TaskSpec("seg", "cross_entropy", "accuracy", loss_args={"ignore_index": 9}, ignore=0),
            r"\[tasks.seg\] ignore = 0, but loss_args has ignore_index = 9",
        ),
    ],
)
def test_an_ignored_label_that_would_count_in_one_of_the_two(task, words):
    with pytest.raises(UserError, match=words):
        Criteria([task])


def test_constant_predictors_know_255_for_a_class_where_there_are_so_many():
    data = Samples({"image": torch.zeros(4, 1), "seg": torch.tensor([255, 255, 255, 7])})
    task = TaskSpec("seg", "cross_entropy", "accuracy")
    assert constant_metrics(Criteria([task]), data, data, channels={"seg": 300})["seg"] == 75
    assert constant_metrics(Criteria([task]), data, data, channels={"seg": 13})["seg"] == 100
    other = Samples({"image": torch.zeros(2, 1), "seg": torch.tensor([12, 7])})  # a class that was not seen
    assert constant_metrics(Criteria([task]), data, other, channels={"seg": 13})["seg"] == 50


def test_constant_predictors_leave_ignored_pixels_out_of_the_base_rate():
    """One salient of two valid pixels: predicting everywhere is right for half. 255 as a value would be no rate."""
    target = torch.tensor([1.0, 0.0, 255.0, 255.0]).view(1, 1, 2, 2)
    data = Samples({"image": torch.zeros(1, 1), "sal": target})
    task = TaskSpec("sal", "balanced_bce", "max_jaccard")
    assert constant_metrics(Criteria([task]), data, data)["sal"] == pytest.approx(50)
