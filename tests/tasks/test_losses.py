"""Losses against numbers worked out by hand, and their promise never to be NaN."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlc.errors import UserError
from mtlc.tasks.losses import LOSSES, balanced_bce, cross_entropy, edge_bce, l1, mse, normals_l1, resolve_loss

DENSE = sorted(LOSSES.keys() - {"simota"})  # which has labels of another kind: test_simota.py


def example(name: str, count: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """An output and a target that fit the loss."""
    generator = torch.Generator().manual_seed(seed)
    if name == "cross_entropy":
        return torch.randn(count, 5, 4, 4, generator=generator), torch.randint(0, 5, (count, 4, 4), generator=generator)
    channels = 3 if name == "normals_l1" else 1
    output = torch.randn(count, channels, 4, 4, generator=generator)
    target = torch.randn(count, channels, 4, 4, generator=generator)
    return output, (target > 0.5).float() if name in ("balanced_bce", "edge_bce") else target


def test_cross_entropy_leaves_255_out():
    output = torch.tensor([[[0.0, 2.0, 9.0]], [[0.0, 0.0, 0.0]]]).transpose(0, 1)  # (1, 2, 3)
    target = torch.tensor([[0, 1, 255]])
    expected = (math.log(2) + math.log(1 + math.exp(2))) / 2
    assert cross_entropy(output, target).item() == pytest.approx(expected, rel=1e-6)
    assert cross_entropy(torch.zeros(3, 4), torch.tensor([0, 1, 3])).item() == pytest.approx(math.log(4))


def test_255_is_a_class_where_there_are_so_many():
    scores = torch.zeros(10, 300)
    scores[:, 7] = 5
    truth = torch.tensor([7] * 5 + [255] * 5)
    right = math.log(299 + math.exp(5)) - 2.5
    assert cross_entropy(scores, truth).item() == pytest.approx(right, rel=1e-6)
    assert cross_entropy(scores, truth, ignore_index=255).item() == pytest.approx(right - 2.5, rel=1e-6)


@pytest.mark.parametrize(
    ("classes", "truth", "settings", "words"),
    [
        (300, -1, {}, "expected classes 0 to 299, but the target holds -1"),
        (300, -100, {}, "expected classes 0 to 299, but the target holds -100"),
        (5, -100, {}, "expected classes 0 to 4 or 255, but the target holds -100"),
        (5, 255, {"ignore_index": -1}, "expected classes 0 to 4 or -1, but the target holds 255"),
        (5, 5, {}, "expected classes 0 to 4 or 255, but the target holds 5"),
    ],
)
def test_cross_entropy_refuses_what_is_no_class(classes: int, truth: int, settings: dict[str, int], words: str):
    with pytest.raises(UserError, match=words):
        cross_entropy(torch.zeros(2, classes), torch.tensor([0, truth]), **settings)


def test_binary_losses_leave_out_the_value_that_is_set():
    output, target = torch.zeros(1, 1, 1, 5), torch.tensor([1.0, 0, 0, 0, 2]).view(1, 1, 1, 5)
    assert balanced_bce(output, target, ignore_index=2).item() == pytest.approx(1.5 * math.log(2) / 4)
    assert edge_bce(output, target, ignore_index=2).item() == pytest.approx((0.95 + 3 * 0.05) * math.log(2) / 4)


def test_l1_leaves_invalid_depth_out():
    output = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    target = torch.tensor([[[[1.5, 0.0, 5.0, float("nan")]]]])
    assert l1(output, target).item() == pytest.approx((0.5 + 2) / 2)


def test_normals_are_scaled_to_unit_length_first():
    output = torch.tensor([0.0, 3.0, 4.0]).view(1, 3, 1, 1).repeat(1, 1, 1, 2)
    target = torch.zeros(1, 3, 1, 2)
    target[0, 2, 0, 0] = 1  # the second pixel is invalid
    assert normals_l1(output, target).item() == pytest.approx((0.6 + 0.2) / 3)
    torch.testing.assert_close(normals_l1(10 * output, target), normals_l1(output, target))


def test_balanced_bce_weighs_by_the_other_class():
    output = torch.zeros(1, 1, 1, 5)
    target = torch.tensor([1.0, 0, 0, 0, 255]).view(1, 1, 1, 5)
    # One positive at weight 3/4, three negatives at 1/4, each costs log 2; over 4 valid pixels.
    assert balanced_bce(output, target).item() == pytest.approx(1.5 * math.log(2) / 4)
    assert balanced_bce(output, torch.zeros_like(target)).item() == 0


def test_edge_bce_weighs_edges_95_to_5():
    output = torch.zeros(1, 1, 1, 4)
    target = torch.tensor([1.0, 0, 0, 255]).view(1, 1, 1, 4)
    assert edge_bce(output, target).item() == pytest.approx((0.95 + 2 * 0.05) * math.log(2) / 3)
    assert edge_bce(output, target, positive_weight=0.5).item() == pytest.approx(math.log(2) / 2)
    with pytest.raises(UserError, match="between 0 and 1"):
        edge_bce(output, target, positive_weight=95)


def test_mse():
    assert mse(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])).item() == 2.5


@pytest.mark.parametrize("name", DENSE)
def test_a_batch_with_nothing_valid_is_0_with_gradient_0(name: str):
    output, target = example(name)
    if name == "mse":  # everything is valid: nothing at all
        output, target = output[:0], target[:0]
    ignored = torch.zeros_like(target) if name in ("l1", "normals_l1") else torch.full_like(target, 255)
    output.requires_grad_()
    loss = resolve_loss(name)(output, ignored)
    loss.backward()
    assert loss.shape == ()
    assert loss.item() == 0
    assert output.grad is not None
    assert not output.grad.isnan().any()
    assert not output.grad.any()


@pytest.mark.parametrize("name", DENSE)
def test_gradients_are_finite_where_labels_are_not(name: str):
    output, target = example(name)
    if target.is_floating_point() and name in ("l1", "normals_l1"):
        target[0, :, 0, 0] = float("nan")
    output[0, :, 1, 1] = 0  # a normal of length 0, a logit of 0
    output.requires_grad_()
    loss = resolve_loss(name)(output, target)
    loss.backward()
    assert loss.item() > 0
    assert output.grad is not None
    assert output.grad.isfinite().all()
    assert output.grad.any()


@pytest.mark.parametrize(
    ("name", "output", "target", "message"),
    [
        (
            "cross_entropy",
            (2, 5, 4, 4),
            (2, 1, 4, 4),
            r"output \(2, 5, 4, 4\) goes with target \(2, 4, 4\), not \(2, 1,",
        ),
        ("cross_entropy", (2,), (2,), r"logits \(N, C, ...\)"),
        ("l1", (2, 1, 4, 4), (2, 4, 4), r"output is \(2, 1, 4, 4\) and target \(2, 4, 4\)"),
        ("normals_l1", (2, 1, 4, 4), (2, 1, 4, 4), r"expected normals \(N, 3, H, W\)"),
        ("balanced_bce", (2, 1, 8, 8), (2, 1, 4, 4), "of one shape"),
        ("edge_bce", (2, 2, 4, 4), (2, 1, 4, 4), "of one shape"),
        ("mse", (2, 4), (2, 1), "of one shape"),
    ],
)
def test_shapes_that_do_not_fit_are_named(name: str, output: tuple, target: tuple, message: str):
    labels = torch.zeros(target, dtype=torch.long if name == "cross_entropy" else torch.float)
    with pytest.raises(UserError, match=message) as error:
        resolve_loss(name)(torch.zeros(output), labels)
    assert "\n" not in str(error.value)


def test_classes_must_be_integers():
    with pytest.raises(UserError, match="integers, but the target is float32"):
        cross_entropy(torch.zeros(2, 5), torch.zeros(2))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(DENSE), st.integers(0, 1000), st.permutations(range(4)))
def test_the_order_of_samples_does_not_matter(name: str, seed: int, order: list[int]):
    output, target = example(name, 4, seed)
    loss = resolve_loss(name)
    torch.testing.assert_close(loss(output[order], target[order]), loss(output, target))


def test_resolve_loss():
    assert resolve_loss("mse") is mse
    assert resolve_loss("torch.nn.functional:smooth_l1_loss") is torch.nn.functional.smooth_l1_loss
    with pytest.raises(UserError, match="unknown loss 'cross_entrpy'; did you mean 'cross_entropy'"):
        resolve_loss("cross_entrpy")
    with pytest.raises(UserError, match="no_such_module"):
        resolve_loss("no_such_module:loss")
