"""Losses and metrics as people have them: classes, objects and functions of others."""

from __future__ import annotations

import math

import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.live_objects import reference
from mtlc.tasks.foreign_criteria import ForeignMetric
from mtlc.tasks.losses import resolve_loss
from mtlc.tasks.metrics import RootMeanSquaredError, resolve_metric
from mtlc.tasks.task import TaskSpec


class MeanMetric:
    """As one of torchmetrics: state, `update`, `compute` that gives a tensor, `reset`; no unit."""

    higher_is_better = False

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.reset()

    def reset(self) -> None:
        self.total, self.count = torch.tensor(0.0), 0

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.total = self.total + (preds - target).abs().sum()
        self.count += target.numel()

    def compute(self) -> Tensor:
        return self.scale * self.total / self.count


def worst(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).abs().max()


def test_classes_and_objects_of_torch_are_losses():
    output, target = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [0.0]])
    assert resolve_loss("torch.nn:MSELoss")(output, target) == 5
    assert resolve_loss("torch.nn:MSELoss")(output, target, reduction="sum") == 10
    assert resolve_loss(reference(nn.HuberLoss(delta=0.5)))(output, target) == pytest.approx((0.375 + 1.375) / 2)
    scores = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    for kind in (torch.uint8, torch.int32, torch.int64):  # torch takes int64 alone
        loss = resolve_loss(reference(nn.CrossEntropyLoss()))(scores, torch.tensor([0, 1], dtype=kind))
        assert float(loss) == pytest.approx(math.log(2))


def test_a_loss_of_torch_does_not_broadcast_what_does_not_fit():
    with pytest.raises(UserError, match=r"\(4, 1\).*\(4,\)|\(4,\).*\(4, 1\)"):
        resolve_loss("torch.nn:MSELoss")(torch.zeros(4, 1), torch.zeros(4))


def test_a_class_is_asked_whether_it_takes_the_label_that_does_not_count():
    criteria = Criteria([TaskSpec("a", "torch.nn:CrossEntropyLoss", "accuracy", ignore=1)])
    loss = criteria.loss(criteria.tasks[0], torch.tensor([[0.0, 0.0], [0.0, 9.0]]), {"a": torch.tensor([0, 1])})
    assert float(loss) == pytest.approx(math.log(2))
    with pytest.raises(UserError, match="takes no ignore_index"):
        Criteria([TaskSpec("a", "torch.nn:MSELoss", "accuracy", ignore=1)])


def test_metrics_of_others():
    module = f"{__name__}:MeanMetric"
    for made in (resolve_metric(module), resolve_metric(reference(ForeignMetric(MeanMetric())))):
        assert math.isnan(made.compute())
        made.update(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0]))
        made.update(torch.tensor([6.0]), torch.tensor([0.0]))
        assert made.compute() == 3
        assert (made.higher_is_better, made.unit, made.kind, made.details()) == (False, "", "unknown", {})
    assert resolve_metric(module, scale=2.0)._given.scale == 2


def test_an_object_is_not_fed_itself():
    mine = MeanMetric()
    mine.update(torch.ones(1), torch.zeros(1))
    name = reference(ForeignMetric(mine, unit="m"))
    one, other = resolve_metric(name), resolve_metric(name)
    one.update(torch.full((2,), 5.0), torch.zeros(2))
    assert (one.compute(), one.unit, mine.count) == (5, "m", 1)
    assert math.isnan(other.compute())


def test_a_function_is_averaged_over_samples_however_they_are_cut_into_batches():
    output, target = torch.tensor([[1.0], [2.0], [6.0]]), torch.zeros(3, 1)
    for cuts in ((3,), (1, 2)):
        made = resolve_metric(reference(ForeignMetric(worst, False, "m")))
        for part, label in zip(output.split(cuts), target.split(cuts), strict=True):
            made.update(part, label)
        assert (made.compute(), made.higher_is_better, made.unit) == (3, False, "m")


def test_a_metric_that_says_nothing_of_better_is_refused():
    with pytest.raises(UserError, match=r"metric = 'worst' does not say whether more is better.*higher_is_better=True"):
        resolve_metric(f"{__name__}:worst")
    with pytest.raises(UserError, match=r"does not take \{'scale': 2\}"):
        resolve_metric(reference(ForeignMetric(worst, True)), scale=2)


def test_metrics_of_mtlc_pass_through():
    assert type(resolve_metric("rmse")) is RootMeanSquaredError
    mine = RootMeanSquaredError()
    made = resolve_metric(reference(ForeignMetric(mine)))
    assert type(made) is RootMeanSquaredError
    assert made is not mine


class Labelled:
    """Eight samples whose input is their output; those in `without` have no label."""

    def __init__(self, output: Tensor, target: Tensor, without: tuple[int, ...] = ()) -> None:
        self.samples = [{"x": output[row], "a": None if row in without else target[row]} for row in range(len(output))]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int):
        return self.samples[index]


def of_torchmetrics():
    """Its metrics, an output and a label, and the value by hand."""
    draw = torch.Generator().manual_seed(3)
    scores, classes = torch.randn(8, 3, 4, 4, generator=draw), torch.randint(0, 3, (8, 4, 4), generator=draw)
    depth, truth = torch.rand(8, 1, 4, 4, generator=draw), torch.rand(8, 1, 4, 4, generator=draw)

    def jaccard(output: Tensor, target: Tensor) -> float:
        found = output.argmax(1)
        both = [((found == c) & (target == c)).sum() / ((found == c) | (target == c)).sum() for c in range(3)]
        return float(sum(both)) / 3

    def right(output: Tensor, target: Tensor) -> float:
        return float((output.argmax(1) == target).float().mean())

    def squared(output: Tensor, target: Tensor) -> float:
        return float((output - target).square().mean())

    yield MulticlassAccuracy(num_classes=3, average="micro"), scores, classes, right, True
    yield MulticlassJaccardIndex(num_classes=3), scores, classes, jaccard, True
    yield torchmetrics.JaccardIndex(task="multiclass", num_classes=3), scores, classes, jaccard, True
    yield torchmetrics.MeanSquaredError(), depth, truth, squared, False
    yield torchmetrics.MeanSquaredError(squared=False), depth, truth, lambda o, t: squared(o, t) ** 0.5, False
    yield torchmetrics.MeanAbsoluteError(), depth, truth, lambda o, t: float((o - t).abs().mean()), False


@pytest.mark.parametrize("case", list(of_torchmetrics()), ids=lambda case: type(case[0]).__name__)
def test_metrics_of_torchmetrics_and_samples_without_labels(case):
    given, output, target, by_hand, better = case
    loss = "cross_entropy" if better else "mse"
    criteria = Criteria([TaskSpec("a", loss, reference(ForeignMetric(given)), output="")])
    assert criteria.higher_is_better == {"a": better}

    def value(*samples) -> float:
        return evaluate(lambda batch: {"a": batch["x"]}, criteria, Labelled(*samples), batch_size=3).metrics["a"]

    assert value(output, target) == pytest.approx(by_hand(output, target), abs=1e-6)
    without = (3, 4, 5, 6, 7)  # the second batch has no label at all
    assert value(output, target, without) == pytest.approx(by_hand(output[:3], target[:3]), abs=1e-6)
    assert value(output, target, without) == value(output[:3], target[:3])


def test_classes_of_torchmetrics_take_settings_and_what_does_not_count():
    spec = TaskSpec(
        "a", "cross_entropy", "torchmetrics.classification:MulticlassAccuracy", output="", ignore=255,
        metric_args={"num_classes": 2, "average": "micro"},
    )  # fmt: skip
    made = Criteria([spec]).new_metric(spec)
    made.update(torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 255, 1]))
    assert made.compute() == 0.5
    wrong = TaskSpec("a", "cross_entropy", "torchmetrics:MeanAbsoluteError", output="", metric_args={"classes": 2})
    with pytest.raises(UserError, match=r"\[tasks.a\] .*MeanAbsoluteError.*classes"):
        Criteria([wrong])


def test_a_collection_of_metrics_is_refused_with_what_to_do():
    several = torchmetrics.MetricCollection([torchmetrics.MeanAbsoluteError(), torchmetrics.MeanSquaredError()])
    for given in (ForeignMetric(several), ForeignMetric(several, higher_is_better=False)):
        with pytest.raises(
            UserError, match=r"'MetricCollection' holds several metrics \(MeanAbsoluteError, MeanSq.*one"
        ):
            resolve_metric(reference(given))


def test_a_metric_of_torchmetrics_waits_for_no_other_process():
    made = resolve_metric(reference(ForeignMetric(torchmetrics.MeanAbsoluteError())))
    assert not made._given.sync_on_compute
