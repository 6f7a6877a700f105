"""The loss of detectors against numbers worked out by hand, and its promises."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mtlc.box_decoding import decode_boxes
from mtlc.detection import Detection
from mtlc.errors import UserError
from mtlc.tasks.simota import assign, check_boxes, decode, overlap, simota

TABLE = {"kind": "detection", "size": [16, 16], "strides": [4]}
"""Sixteen points, at 2, 6, 10 and 14 in both directions; point 5 is at (6, 6)."""
HOW = Detection.parse(TABLE)
NOTHING = [0.0, 0.0, 0.0, 0.0, -1.0]


def outputs(boxes: dict[int, tuple[float, float, float, float]], classes: int = 2, how: Detection = HOW) -> Tensor:
    """A raw output (1, A, 5 + classes) whose points predict boxes of 2 × 2 pixels, those of `boxes` the given ones."""
    raw = torch.zeros(1, how.anchors, 5 + classes)
    raw[..., :4] = math.log(1 / 4)
    for point, (left, top, right, bottom) in boxes.items():
        x, y, stride = how.points[point]
        raw[0, point, :4] = torch.tensor([x - left, y - top, right - x, bottom - y]).div(stride).log()
    return raw


def assigned(raw: Tensor, *labels: list[float], **settings: float) -> tuple[list[int], list[float]]:
    target = torch.tensor([list(labels)])
    chosen, share = assign(decode(raw, HOW), raw[..., 5:], target, HOW, **settings)
    return chosen[0].tolist(), share[0].tolist()


def test_a_label_gets_one_point_where_none_fits_well():
    # The label covers points 5, 6, 9, 10. All predict 2 × 2 pixels of its 64: IoU 1/16 each, and the sum of the ten
    # best, 4/16, makes one point.
    chosen, share = assigned(outputs({}), [4, 4, 12, 12, 0])
    assert [point for point, row in enumerate(chosen) if row == 0] == [5]  # the first of equals
    assert share[5] == pytest.approx(4 / 64)
    assert sum(share) == share[5]


def test_as_many_points_as_the_sum_of_overlaps():
    box = (4.0, 4.0, 12.0, 12.0)
    # Three points predict the label itself, the fourth a sixteenth of it: 3 + 1/16 makes three points.
    chosen, share = assigned(outputs({5: box, 6: box, 10: box}), [*box, 1])
    assert {point: row for point, row in enumerate(chosen) if row >= 0} == {5: 0, 6: 0, 10: 0}
    assert share[10] == pytest.approx(1)
    # Only the best two vote: two points, of the three the first ones.
    chosen, _ = assigned(outputs({5: box, 6: box, 10: box}), [*box, 1], candidates=2)
    assert [point for point, row in enumerate(chosen) if row >= 0] == [5, 6]


def test_points_in_the_box_come_before_better_ones_beside_it():
    # Point 5 lies in the label, point 6 does not, though it predicts the label exactly: with a radius of 2 it is near
    # enough to be a candidate, but costs 100000 more.
    box = (4.0, 4.0, 8.0, 8.0)
    chosen, _ = assigned(outputs({6: box}), [*box, 0], radius=2.0)
    assert [point for point, row in enumerate(chosen) if row >= 0] == [5]


def test_a_point_of_two_labels_goes_to_the_cheaper_one():
    small, large = [4.0, 4.0, 8.0, 8.0, 0.0], [4.0, 4.0, 9.0, 9.0, 1.0]
    raw = outputs({5: (4, 4, 8, 8)})
    chosen, share = assigned(raw, large, small, radius=0.5)
    assert chosen[5] == 1
    assert share[5] == pytest.approx(1)
    # A class that is sure enough turns it: the cost is the cross-entropy and three times -ln IoU, 3 · ln(25/16) = 1.34.
    raw[0, 5, 5:] = torch.tensor([-3.0, 3.0])
    chosen, share = assigned(raw, large, small, radius=0.5)
    assert chosen[5] == 0
    assert share[5] == pytest.approx(16 / 25)


def test_rows_of_nothing_get_no_point():
    assert assigned(outputs({}), NOTHING, NOTHING)[0] == [-1] * 16
    chosen, _ = assigned(outputs({}), NOTHING, [4, 4, 12, 12, 0])
    assert chosen[5] == 1


def test_loss_by_hand():
    raw = outputs({5: (4, 4, 12, 12)})
    target = torch.tensor([[[4.0, 4, 12, 12, 1], NOTHING]])
    # One point of IoU 1: no loss of boxes. Objectness: sixteen times ln 2. Classes at the one point: twice ln 2.
    assert simota(raw, target, TABLE).item() == pytest.approx(18 * math.log(2), rel=1e-5)
    # A box of a quarter of the label: 5 · (1 - 1/16), and the class aims at .25 - which costs ln 2 all the same.
    quarter = outputs({5: (4, 4, 8, 8)})
    assert simota(quarter, target, TABLE).item() == pytest.approx(5 * 15 / 16 + 18 * math.log(2), rel=1e-5)
    assert simota(quarter, target, TABLE, box_weight=0).item() == pytest.approx(18 * math.log(2), rel=1e-5)


def test_loss_without_objectness():
    table = TABLE | {"objectness": False}
    raw = outputs({5: (4, 4, 12, 12)}, classes=1)[..., [0, 1, 2, 3, 5]]
    assert simota(raw, torch.tensor([[[4.0, 4, 12, 12, 0]]]), table).item() == pytest.approx(16 * math.log(2), rel=1e-5)


def test_a_picture_of_no_object_teaches_that_nothing_is_there():
    raw = outputs({}).requires_grad_()
    for target in (torch.tensor([[NOTHING]]), torch.zeros(1, 0, 5)):
        loss = simota(raw, target, TABLE)
        assert loss.item() == pytest.approx(16 * math.log(2), rel=1e-5)
        (gradient,) = torch.autograd.grad(loss, raw)
        assert (gradient[..., 4] > 0).all()
        assert not gradient[..., [0, 1, 2, 3, 5, 6]].any()


def test_a_picture_without_labels_counts_for_nothing():
    raw = torch.cat([outputs({5: (4, 4, 12, 12)}), outputs({})]).requires_grad_()
    target = torch.tensor([[[4.0, 4, 12, 12, 1], NOTHING], [[0.0, 0, 0, 0, 255], NOTHING]])
    loss = simota(raw, target, TABLE)
    assert loss.item() == pytest.approx(18 * math.log(2), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, raw)
    assert not gradient[1].any()
    assert simota(raw[1:], target[1:], TABLE).item() == 0
    assert simota(raw, target.where(target != 255, 9), TABLE, ignore_index=9).item() == pytest.approx(loss.item())


@pytest.mark.parametrize("encoding", ["distances", "center_size"])
def test_gradient_is_right_and_descent_finds_the_boxes(encoding: str):
    table = {"kind": "detection", "size": [16, 24], "strides": [4, 8], "encoding": encoding}
    how = Detection.parse(table)
    target = torch.tensor([[[3.0, 2, 11, 9, 0], [12, 5, 23, 16, 1], NOTHING], [NOTHING] * 3])
    raw = (0.3 * torch.randn(2, how.anchors, 7, generator=torch.Generator().manual_seed(0))).double()
    # Between changes of the assignment the loss is smooth: its gradient against differences, in one direction. The
    # classes' aim, the IoU, takes no gradient; at logits of 0 it does not matter.
    raw[..., 5:] = 0
    raw.requires_grad_()
    loss = simota(raw, target.double(), table)
    (gradient,) = torch.autograd.grad(loss, raw)
    step = 1e-6 * torch.randn(raw.shape, generator=torch.Generator().manual_seed(1)).double()
    ahead, behind = (simota(raw.detach() + way * step, target.double(), table) for way in (1, -1))
    assert (ahead - behind).item() / 2 == pytest.approx((gradient * step).sum().item(), rel=1e-3)
    free = raw.detach().float().requires_grad_()
    optimizer = torch.optim.Adam([free], 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        simota(free, target, table).backward()
        optimizer.step()
    boxes, scores = decode_boxes(free.detach().numpy(), how)
    best = scores[0].argmax(0)
    np.testing.assert_allclose(boxes[0, best], target[0, :2, :4], atol=0.5)
    assert (scores[0].max(0) > 0.9).all()
    assert scores[1].max() < 0.1


def test_neither_the_order_of_samples_nor_of_boxes_matters():
    generator = torch.Generator().manual_seed(2)
    raw = torch.randn(3, 16, 7, generator=generator)
    target = torch.tensor([[[1.0, 1, 9, 9, 0], [5, 4, 15, 14, 1]], [[2, 2, 8, 12, 1], NOTHING], [NOTHING, NOTHING]])
    loss = simota(raw, target, TABLE)
    torch.testing.assert_close(simota(raw[[2, 0, 1]], target[[2, 0, 1]], TABLE), loss)
    torch.testing.assert_close(simota(raw, target.flip(1), TABLE), loss)


def test_torch_and_numpy_decode_alike():
    for encoding in ("distances", "center_size"):
        how = Detection.parse(TABLE | {"encoding": encoding})
        raw = torch.randn(2, 16, 7, generator=torch.Generator().manual_seed(3)) * 3
        boxes, _ = decode_boxes(raw.numpy(), how)
        torch.testing.assert_close(decode(raw, how).clamp(0, 16), torch.from_numpy(boxes), rtol=1e-5, atol=1e-4)


def test_overlap():
    one, other = torch.tensor([0.0, 0, 4, 4]), torch.tensor([[2.0, 0, 6, 4], [4, 4, 5, 5], [1, 1, 1, 1]])
    torch.testing.assert_close(overlap(one, other), torch.tensor([1 / 3, 0.0, 0.0]))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([4.0, 4, 4, 8, 0], "box 1 (4, 4, 4, 8, 0) has no area; give x1 < x2 and y1 < y2"),
        ([4.0, 8, 8, 4, 0], "box 1 (4, 8, 8, 4, 0) has no area; give x1 < x2 and y1 < y2"),
        (
            [4.0, 4, 17, 8, 0],
            "box 1 (4, 4, 17, 8, 0) leaves the picture of 16 × 16 pixels (H × W); cut it at the border",
        ),
        (
            [-1.0, 4, 8, 8, 0],
            "box 1 (-1, 4, 8, 8, 0) leaves the picture of 16 × 16 pixels (H × W); cut it at the border",
        ),
        ([4.0, 4, 8, 8, 2], "box 1 (4, 4, 8, 8, 2) has a class that is none of 0 to 1, nor -1 for nothing"),
        ([4.0, 4, 8, 8, 0.5], "box 1 (4, 4, 8, 8, 0.5) has a class that is none of 0 to 1, nor -1 for nothing"),
        ([4.0, 4, 8, 8, -2], "box 1 (4, 4, 8, 8, -2) has a class that is none of 0 to 1, nor -1 for nothing"),
        ([4.0, math.nan, 8, 8, 0], "box 1 (4, nan, 8, 8, 0) is not finite; rows of nothing have class -1"),
        ([math.nan] * 5, "box 1 (nan, nan, nan, nan, nan) is not finite; rows of nothing have class -1"),
    ],
)
def test_bad_boxes(row: list[float], words: str):
    target = torch.tensor([[[4.0, 4, 12, 12, 1], row]])
    with pytest.raises(UserError) as caught:
        simota(outputs({}), target, TABLE)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (torch.zeros(1, 2, 4), "expected boxes (1, M, 5), rows x1, y1, x2, y2, class, but the target is (1, 2, 4)"),
        (torch.zeros(2, 2, 5), "expected boxes (1, M, 5), rows x1, y1, x2, y2, class, but the target is (2, 2, 5)"),
        (torch.zeros(1, 2, 5).long(), "expected boxes as floats, but the target is int64: call float()"),
    ],
)
def test_labels_of_another_shape(target: Tensor, words: str):
    with pytest.raises(UserError) as caught:
        check_boxes(outputs({}), target, HOW)
    assert str(caught.value) == words


def test_bad_settings():
    with pytest.raises(UserError, match="a task with boxes needs postprocess"):
        simota(outputs({}), torch.tensor([[NOTHING]]))
    with pytest.raises(UserError, match="candidates = 0"):
        simota(outputs({}), torch.tensor([[NOTHING]]), TABLE, candidates=0)
