"""Metrics against numbers worked out by hand, and the rules that hold for all inputs."""

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlc.errors import UserError
from mtlc.tasks.metrics import METRICS, Metric, dilate, resolve_metric, suppress

DENSE = sorted(METRICS.keys() - {"map", "map_50"})  # which have labels of another kind: test_average_precision.py


def logits(probabilities: Tensor) -> Tensor:
    return torch.logit(probabilities.clamp(1e-6, 1 - 1e-6))


def score(name: str, output: Tensor, target: Tensor, **settings: object) -> Metric:
    metric = resolve_metric(name, **settings)
    metric.update(output, target)
    return metric


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Logits (N, C, ...) whose largest is that of `labels` (N, ...)."""
    return torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).float()


def example(name: str, count: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """An output and a target that fit the metric."""
    generator = torch.Generator().manual_seed(seed)
    if name in ("miou", "accuracy"):
        target = torch.randint(0, 4, (count, 6, 6), generator=generator)
        target[0, :2] = 255
        return torch.randn(count, 4, 6, 6, generator=generator), target
    channels = 3 if name == "mean_angle" else 1
    output, target = torch.randn(2, count, channels, 6, 6, generator=generator)
    if name in ("max_jaccard", "odsf"):
        return output, (target > 0.3).float()
    target[0, :, :2] = 0
    return output, target


# --- Numbers worked out by hand ------------------------------------------------------------------------------------


def test_miou():
    target = torch.tensor([[0, 0, 1, 1, 255, 1]])
    output = one_hot(torch.tensor([[0, 1, 1, 1, 3, 2]]), 5)
    metric = score("miou", output, target)
    # Class 0: 1 of {0, 1}; class 1: 2 of {1, 2, 3, 5}; class 2 is only predicted: 0; 3 is predicted where ignored, 4
    # nowhere.
    assert metric.compute() == pytest.approx(100 * (1 / 2 + 2 / 4 + 0) / 3)
    assert metric.details() == pytest.approx({"class_0": 50, "class_1": 50, "class_2": 0})


def test_255_is_a_class_where_there_are_so_many():
    """300 classes, always answering 7: the five labels of 255 are wrong. With 255 classes they do not count."""
    scores = torch.zeros(10, 300)
    scores[:, 7] = 5
    truth = torch.tensor([7] * 5 + [255] * 5)
    assert score("accuracy", scores, truth).compute() == 50
    assert score("accuracy", scores[:, :256], truth).compute() == 50
    assert score("accuracy", scores[:, :255], truth).compute() == 100
    assert score("accuracy", scores, truth, ignore_index=255).compute() == 100
    assert score("miou", scores, truth).compute() == 25
    assert score("miou", scores, truth, ignore_index=255).compute() == 100


@pytest.mark.parametrize("name", ["accuracy", "miou"])
@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
def test_the_ignored_value_is_a_setting(name: str, kind: torch.dtype):
    output = one_hot(torch.tensor([[0, 1, 1, 0]]), 3)
    target = torch.tensor([[0, 1, 2, 2]], dtype=kind)
    assert score(name, output, target, ignore_index=2).compute() == 100
    with pytest.raises(UserError, match="expected classes 0 to 2 or -1, but the target holds 255"):
        score(name, output, torch.tensor([[0, 1, 2, 255]], dtype=kind), ignore_index=-1)  # a uint8 of -1 is 255


def test_an_ignored_class_has_no_share_of_the_mean():
    metric = score("miou", one_hot(torch.tensor([[0, 1, 2, 2]]), 3), torch.tensor([[0, 1, 1, 2]]), ignore_index=2)
    assert metric.details() == pytest.approx({"class_0": 100, "class_1": 50})
    assert metric.compute() == pytest.approx(75)


def test_binary_metrics_leave_out_the_value_that_is_set():
    output = logits(torch.tensor([[[[0.9, 0.9, 0.1, 0.1]]]]))
    target = torch.tensor([[[[1.0, 0.0, 0.0, 2.0]]]])
    assert score("max_jaccard", output, target).compute() == pytest.approx(100 / 3)  # 2 is above a half: salient
    assert score("max_jaccard", output, target, ignore_index=2).compute() == pytest.approx(50)
    settings = {"thin": False, "tolerance": 0.0, "thresholds": 1}
    assert score("odsf", output, target, **settings).compute() == pytest.approx(100 * 1 / 2)
    assert score("odsf", output, target, ignore_index=2, **settings).compute() == pytest.approx(100 * 2 / 3)


def test_miou_is_of_the_data_set_and_not_of_the_batch():
    metric = resolve_metric("miou")
    metric.update(one_hot(torch.tensor([[0, 0, 0, 1]]), 2), torch.tensor([[0, 0, 0, 0]]))
    metric.update(one_hot(torch.tensor([[1, 1, 1, 1]]), 2), torch.tensor([[0, 1, 1, 1]]))
    assert metric.compute() == pytest.approx(100 * (3 / 5 + 3 / 5) / 2)
    with pytest.raises(UserError, match="expected 2 classes as before, but the output has 3"):
        metric.update(torch.zeros(1, 3, 4), torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(UserError, match="expected classes 0 to 1 or 255, but the target holds 7"):
        metric.update(torch.zeros(1, 2, 4), torch.full((1, 4), 7))


def test_accuracy():
    output = one_hot(torch.tensor([0, 1, 2, 2]), 3)
    assert score("accuracy", output, torch.tensor([0, 1, 0, 255])).compute() == pytest.approx(200 / 3)


def test_rmse_is_pooled_over_valid_pixels():
    metric = resolve_metric("rmse")
    metric.update(torch.tensor([[[[1.0, 5.0]]]]), torch.tensor([[[[4.0, 0.0]]]]))  # an error of 3, and an invalid pixel
    metric.update(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[1.0, 2.0]]]]))
    assert metric.compute() == pytest.approx(math.sqrt(9 / 3))


def test_mse():
    assert score("mse", torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]])).compute() == 2.5


def test_mean_angle():
    angles = [0.0, 10.0, 20.0, 25.0, 90.0, 180.0]
    output = torch.tensor([[math.sin(math.radians(a)), 0, math.cos(math.radians(a))] for a in angles]).T
    output = 7 * output.reshape(1, 3, 1, 6)
    target = torch.zeros(1, 3, 1, 6)
    target[:, 2] = 1
    metric = score("mean_angle", output, target)
    assert metric.compute() == pytest.approx(sum(angles) / 6, abs=1e-4)
    assert metric.details() == pytest.approx({"under_11.25": 200 / 6, "under_22.5": 50, "under_30": 400 / 6})
    target[..., 4:] = 0  # invalid
    assert score("mean_angle", output, target).compute() == pytest.approx(55 / 4, abs=1e-4)


def test_max_jaccard():
    target = torch.tensor([[1.0, 1, 0, 0], [1, 0, 0, 0]]).view(2, 1, 1, 4)
    probability = torch.tensor([[0.92, 0.52, 0.52, 0.1], [0.92, 0.52, 0.1, 0.1]]).view(2, 1, 1, 4)
    metric = score("max_jaccard", logits(probability), target)
    # Up to .5: (2/3 + 1/2)/2 = .583; from .55 to .9: (1/2 + 1)/2 = .75.
    assert metric.compute() == pytest.approx(75)
    assert metric.details()["threshold"] == pytest.approx(0.55)
    assert score("max_jaccard", torch.full((1, 1, 2, 2), -9.0), torch.zeros(1, 1, 2, 2)).compute() == 100


def test_odsf_counts_within_the_tolerance():
    target = torch.zeros(1, 1, 30, 40)  # a diagonal of 50
    target[..., 20] = 1
    shifted = torch.zeros_like(target)
    shifted[..., 22] = 0.8
    assert score("odsf", logits(shifted), target, tolerance=2.0 / 50).compute() == pytest.approx(100)
    assert score("odsf", logits(shifted), target, tolerance=1.9 / 50).compute() == 0
    # Half of the line is found, and 15 pixels far away are wrong: P = R = 1/2.
    half = torch.zeros_like(target)
    half[..., :15, 20] = 0.8
    half[..., :15, 5] = 0.8
    metric = score("odsf", logits(half), target, tolerance=0.0)
    assert metric.compute() == pytest.approx(50)
    assert metric.details()["precision"] == pytest.approx(50)
    assert metric.details()["recall"] == pytest.approx(50)


def test_odsf_takes_one_threshold_for_the_data_set():
    target = torch.zeros(2, 1, 9, 9)
    target[:, :, 4] = 1
    probability = torch.zeros_like(target)
    probability[0, :, 4], probability[0, :, 1] = 0.9, 0.5  # best cut above .5
    probability[1, :, 4] = 0.3  # best cut below .3
    metric = score("odsf", logits(probability), target, tolerance=0.0)
    # Cut low: P = 18/27, R = 1, F = .8; cut high: P = 1, R = 1/2, F = 2/3.
    assert metric.compute() == pytest.approx(80)
    assert metric.details()["threshold"] <= 0.3


def test_odsf_thins_a_blurred_line():
    target = torch.zeros(1, 1, 32, 32)
    target[..., 16] = 1
    blurred = torch.zeros_like(target)
    blurred[..., 15:18] = torch.tensor([0.6, 0.8, 0.6])
    assert score("odsf", logits(blurred), target, tolerance=0.0).compute() == pytest.approx(100)
    # Cut above .6 thinning changes nothing; a plateau that no cut separates stays thick.
    blurred[..., 15:18] = 0.8
    assert score("odsf", logits(blurred), target, tolerance=0.0).compute() == pytest.approx(50)


def test_suppression_follows_slanted_lines():
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    for x, y in ((1, 0), (0, 1), (1, 1), (1, -1)):
        distance = (x * (columns - 12) + y * (rows - 12)) / math.hypot(x, y)
        ridge = torch.exp(-(distance**2) / 4).view(1, 1, 24, 24)
        kept = suppress(ridge)[0, 0, 4:-4, 4:-4] > 0.1
        near = distance[4:-4, 4:-4].abs()
        assert kept[near < 0.1].all()
        assert not kept[near > 0.8].any()


def test_a_dilated_point_is_a_disc():
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 4] = 0.7
    rows, columns = np.indices((9, 9))
    for radius in (0.0, 0.99, 1.0, 1.5, 2.3, 3.7):
        disc = (rows - 4) ** 2 + (columns - 4) ** 2 <= radius**2
        np.testing.assert_array_equal(dilate(point, radius)[0, 0].numpy() > 0, disc)


def test_odsf_equals_dilation_at_each_threshold():
    """The histograms against the plain definition."""
    generator = torch.Generator().manual_seed(3)
    probability = torch.rand(3, 1, 12, 16, generator=generator)
    target = (torch.rand(3, 1, 12, 16, generator=generator) > 0.85).float()
    metric = score("odsf", torch.logit(probability), target, tolerance=0.1, thin=False, thresholds=9)
    best = 0.0
    for threshold in np.linspace(0.01, 0.99, 9):
        guess = (probability >= threshold).float()
        precision = (guess * dilate(target, 2.0)).sum() / guess.sum().clamp(min=1)
        recall = (target * dilate(guess, 2.0)).sum() / target.sum()
        best = max(best, float(2 * precision * recall / (precision + recall).clamp(min=1e-12)))
    assert metric.compute() == pytest.approx(100 * best, rel=1e-6)


@pytest.mark.slow
def test_odsf_is_fast():
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(500, 1, 64, 64, generator=generator)
    target = (torch.randn(500, 1, 64, 64, generator=generator) > 1.3).float()
    start = time.perf_counter()
    score("odsf", output, target, tolerance=0.02).compute()
    assert time.perf_counter() - start < 6  # s; well under 1 on an idle machine


# --- Rules ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(DENSE), st.integers(0, 1000), st.sets(st.integers(1, 5)))
def test_batches_do_not_matter(name: str, seed: int, cuts: set[int]):
    output, target = example(name, 6, seed)
    whole, parts = score(name, output, target), resolve_metric(name)
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 6], strict=True):
        parts.update(output[start:stop], target[start:stop])
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-6)
    assert parts.details() == pytest.approx(whole.details(), rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["miou", "accuracy"]), st.integers(0, 1000), st.permutations(range(4)))
def test_renaming_the_classes_does_not_matter(name: str, seed: int, order: list[int]):
    output, target = example(name, 3, seed)
    renamed = torch.where(target == 255, target, torch.tensor([*order])[target.clamp(max=3)])
    moved = torch.empty_like(output)
    moved[:, order] = output
    assert score(name, moved, renamed).compute() == pytest.approx(score(name, output, target).compute())


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(DENSE), st.integers(0, 1000))
def test_mirroring_does_not_matter(name: str, seed: int):
    output, target = example(name, 2, seed)
    mirrored = score(name, output.flip(-1), target.flip(-1)).compute()
    # Of 1,001 seeds one differs: rounding decides the direction of a pixel, which is 5 % of so small an image's score.
    assert mirrored == pytest.approx(score(name, output, target).compute(), rel=0.1 if name == "odsf" else 1e-6)


@pytest.mark.parametrize("name", DENSE)
def test_a_perfect_output_is_perfect_and_a_worse_one_is_worse(name: str):
    output, target = example(name, 4, seed=1)
    if name in ("miou", "accuracy"):
        perfect = one_hot(target.clamp(max=3), 4)
    elif name in ("max_jaccard", "odsf"):
        target = torch.zeros_like(target)
        target[..., 3] = 1
        perfect = logits(target)
    else:
        perfect = target.clone()
    metric = score(name, perfect, target)
    assert metric.compute() == pytest.approx(100 if metric.higher_is_better else 0, abs=1e-5)
    worse = score(name, output, target).compute()
    assert worse < metric.compute() if metric.higher_is_better else worse > metric.compute()


@pytest.mark.parametrize("name", DENSE)
def test_nothing_valid_is_not_a_number(name: str):
    assert math.isnan(resolve_metric(name).compute())
    output, target = example(name)
    if name in ("mse", "max_jaccard"):  # nothing is invalid there
        output, target = output[:0], target[:0]
    empty = score(name, output, torch.full_like(target, 255 if name in ("miou", "accuracy") else 0))
    assert math.isnan(empty.compute())
    assert empty.details() == {}


@pytest.mark.parametrize("name", DENSE)
def test_shapes_that_do_not_fit_are_named(name: str):
    output, target = example(name)
    with pytest.raises(UserError, match="expected") as error:
        resolve_metric(name).update(output[..., :3], target)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", DENSE)
def test_what_a_metric_says_of_itself(name: str):
    metric = resolve_metric(name)
    assert metric.higher_is_better == (name in ("miou", "accuracy", "max_jaccard", "odsf"))
    assert metric.unit == {"rmse": "m", "mse": "", "mean_angle": "°"}.get(name, "%")
    kinds = {"miou": "labels", "accuracy": "labels", "mean_angle": "normals", "rmse": "scalar", "mse": "scalar"}
    assert metric.kind == kinds.get(name, "probability")


class Constant:
    """A metric that a job could name as module:callable."""

    higher_is_better, unit, kind = True, "", "scalar"

    def __init__(self, value: float = 3.0) -> None:
        self.value = value

    def update(self, output: Tensor, target: Tensor) -> None: ...

    def compute(self) -> float:
        return self.value

    def details(self) -> dict[str, float]:
        return {}


def test_resolve_metric(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mtlc.tasks.metrics.Constant", Constant, raising=False)
    assert resolve_metric("mtlc.tasks.metrics:Constant", value=4.0).compute() == 4
    with pytest.raises(UserError, match="unknown metric 'mIoU'"):
        resolve_metric("mIoU")
    with pytest.raises(UserError, match="unknown metric 'rsme'; did you mean 'rmse'"):
        resolve_metric("rsme")
    with pytest.raises(UserError, match="does not take"):
        resolve_metric("odsf", tolerence=0.1)
    with pytest.raises(UserError, match="tolerance = -1"):
        resolve_metric("odsf", tolerance=-1)
    with pytest.raises(UserError, match="give a metric with update and compute, or a function"):
        resolve_metric("collections:OrderedDict")
