"""Mean average precision against numbers worked out by hand."""

import builtins
import contextlib
import gc
import io
import math
import tracemalloc

import numpy as np
import pytest
import torch
from torch import Tensor

from mtlc.detection import Detection
from mtlc.errors import Unavailable, UserError
from mtlc.tasks.average_precision import KeptMatches, _evaluated, average_precision
from mtlc.tasks.metrics import resolve_metric

TABLE = {"kind": "detection", "size": [32, 32], "strides": [8], "objectness": False}
HOW = Detection.parse(TABLE)
NOTHING = [0.0, 0.0, 0.0, 0.0, -1.0]


def outputs(*pictures: dict[int, tuple[list[float], int, float]], classes: int = 2) -> Tensor:
    """Raw outputs (N, 16, 4 + classes): by point a box, a class and its score; other points find nothing."""
    raw = torch.full((len(pictures), HOW.anchors, 4 + classes), -20.0)
    for picture, found in enumerate(pictures):
        for point, ((left, top, right, bottom), label, score) in found.items():
            x, y, stride = HOW.points[point]
            raw[picture, point, :4] = torch.tensor([x - left, y - top, right - x, bottom - y]).div(stride).log()
            raw[picture, point, 4 + label] = math.log(score / (1 - score))
    return raw


def measured(name: str, raw: Tensor, *labels: list[list[float]], **settings: object) -> float:
    metric = resolve_metric(name, postprocess=TABLE, **settings)
    metric.update(raw, torch.tensor(labels))
    return metric.compute()


BOX = [0.0, 0.0, 8.0, 8.0]
"""Holds point 0, at (4, 4). The others lie 8 pixels apart: point 5 at (12, 12), point 10 at (20, 20)."""
OTHER = [8.0, 8.0, 16.0, 16.0]


def test_all_right():
    raw = outputs({0: (BOX, 0, 0.9), 5: (OTHER, 1, 0.8)})
    assert measured("map", raw, [[*BOX, 0], [*OTHER, 1]]) == pytest.approx(100)
    assert measured("map_50", raw, [[*BOX, 0], [*OTHER, 1]]) == pytest.approx(100)


def test_a_box_that_overlaps_by_two_thirds_counts_up_to_that_threshold():
    # 8 × 8 against 8 × 12: IoU .6667, which is over .5, .55, .6 and .65 of ten thresholds.
    raw = outputs({0: ([0.0, 0.0, 8.0, 12.0], 0, 0.9)})
    assert measured("map", raw, [[*BOX, 0]]) == pytest.approx(40)
    assert measured("map_50", raw, [[*BOX, 0]]) == pytest.approx(100)
    metric = resolve_metric("map", postprocess=TABLE)
    metric.update(raw, torch.tensor([[[*BOX, 0]]]))
    assert metric.details() == pytest.approx({"map": 40, "map_50": 100, "map_75": 0, "class_0": 40})


def test_a_wrong_box_before_a_right_one_halves_the_precision():
    # Found in the order wrong, right: precision 1/2 at a recall of 1, and so at all recalls.
    raw = outputs({0: (BOX, 0, 0.6), 5: (OTHER, 0, 0.9)})
    assert measured("map", raw, [[*BOX, 0], NOTHING]) == pytest.approx(50)
    # The right one first: the wrong one comes after all is found.
    raw = outputs({0: (BOX, 0, 0.9), 5: (OTHER, 0, 0.6)})
    assert measured("map", raw, [[*BOX, 0], NOTHING]) == pytest.approx(100)


def test_half_of_the_boxes_found():
    # Precision 1 up to a recall of .5: 51 of the 101 recalls 0, .01, … 1.
    raw = outputs({0: (BOX, 0, 0.9)})
    assert measured("map", raw, [[*BOX, 0], [*OTHER, 0]]) == pytest.approx(100 * 51 / 101)


def test_the_mean_is_over_classes_that_are_there():
    raw = outputs({0: (BOX, 0, 0.9), 5: (OTHER, 1, 0.9)}, classes=3)
    # Class 0 is found, class 1 is nowhere in the labels and costs nothing, class 2 is missed.
    assert measured("map", raw, [[*BOX, 0], [16.0, 16, 24, 24, 2]]) == pytest.approx(50)


def test_a_box_of_another_picture_is_wrong():
    raw = outputs({}, {0: (BOX, 0, 0.9)})
    assert measured("map", raw, [[*BOX, 0]], [NOTHING]) == 0
    assert measured("map", raw, [NOTHING], [[*BOX, 0]]) == pytest.approx(100)


def test_found_twice_is_found_once():
    # Both overlap the label; the second has an IoU of .5 with the first and stays, for that is not more than .5.
    raw = outputs({0: (BOX, 0, 0.9), 1: ([0.0, 0.0, 16.0, 8.0], 0, 0.8), 5: (OTHER, 0, 0.7)})
    # right, wrong, right of two labels: precision 1 up to a recall of .5, 2/3 beyond.
    expected = 100 * (51 + 50 * 2 / 3) / 101
    assert measured("map_50", raw, [[*BOX, 0], [*OTHER, 0]]) == pytest.approx(expected)


def test_the_whole_curve_counts_and_not_what_is_shown():
    raw = outputs({0: (BOX, 0, 0.1)})  # below the declared .25
    assert measured("map", raw, [[*BOX, 0]]) == pytest.approx(100)
    assert measured("map", raw, [[*BOX, 0]], score=0.2) == 0


def test_nothing_labelled_is_not_a_number():
    raw = outputs({0: (BOX, 0, 0.9)})
    assert math.isnan(measured("map", raw, [NOTHING]))
    assert math.isnan(measured("map", raw, [[*BOX, 255]]))  # not labelled at all
    assert math.isnan(resolve_metric("map", postprocess=TABLE).compute())
    metric = resolve_metric("map", postprocess=TABLE)
    metric.update(raw, torch.zeros(1, 0, 5))
    assert math.isnan(metric.compute())
    assert metric.details() == {}


def test_pictures_without_labels_are_left_out():
    raw = outputs({0: (BOX, 0, 0.6)}, {0: (BOX, 0, 0.9)})
    assert measured("map", raw, [[*BOX, 0]], [[*OTHER, 255]]) == pytest.approx(100)
    assert measured("map", raw, [[*BOX, 0]], [NOTHING]) == pytest.approx(50)
    assert measured("map", raw, [[*BOX, 0]], [[*OTHER, 7]], ignore_index=7) == pytest.approx(100)


def test_batches_do_not_matter():
    rng = np.random.default_rng(0)
    raw = torch.from_numpy(rng.normal(0, 1, (6, 16, 6)).astype(np.float32))
    target = torch.tensor([[[*BOX, 0], [*OTHER, 1]], [[*OTHER, 0], NOTHING], [NOTHING] * 2] * 2)
    whole, parts = (resolve_metric("map_50", postprocess=TABLE) for _ in range(2))
    whole.update(raw, target)
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        parts.update(raw[part], target[part])
    assert 0 < whole.compute() == parts.compute() < 100
    assert whole.details() == parts.details()


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]):
    measured("map", outputs({0: (BOX, 0, 0.9)}), [[*BOX, 0]])
    assert capsys.readouterr() == ("", "")


def test_precision_by_threshold_recall_and_class():
    truth = [np.array([[*BOX, 1]], np.float32)]
    found = [np.array([[0, 0, 8, 12, 1, 0.5]], np.float32)]  # IoU .6667
    precision = average_precision(truth, found, 2)
    assert precision.shape == (10, 101, 2)
    assert (precision[..., 0] == -1).all()
    np.testing.assert_allclose(precision[:, 0, 1], [1] * 4 + [0] * 6)


def pictures(count: int, classes: int, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Labels (M, 5) and detections (K, 6) of pictures, some without either, with equal scores among them."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(count):
        boxes = rng.integers(0, 20, (rng.integers(0, 5), 4)).astype(np.float32)
        boxes[:, 2:] = boxes[:, :2] + rng.integers(4, 12, (len(boxes), 2))
        truth.append(np.concatenate([boxes, rng.integers(0, classes, (len(boxes), 1))], 1).astype(np.float32))
        near = np.repeat(boxes, 3, 0) + rng.normal(0, 1.5, (3 * len(boxes), 4))
        far = rng.uniform(0, 20, (rng.integers(0, 4), 4)) + np.array([0, 0, 8, 8])
        some = np.concatenate([near, far])
        label, score = rng.integers(0, classes, (len(some), 1)), rng.integers(1, 9, (len(some), 1)) / 10
        found.append(np.concatenate([some, label, score], 1).astype(np.float32))
    return truth, found


@pytest.mark.parametrize("seed", range(3))
def test_it_is_that_of_pycocotools_to_the_last_bit(seed: int):
    truth, found = pictures(30, 4, seed)
    found[0] = np.repeat(found[0], 60, 0)  # more than the 100 that count
    run = _evaluated(truth, found, 4)
    with contextlib.redirect_stdout(io.StringIO()):
        run.accumulate()
    expected = run.eval["precision"][:, :, :, 0, 0]
    np.testing.assert_array_equal(average_precision(truth, found, 4), expected)
    parts = KeptMatches()
    for start in range(0, 30, 7):
        parts.add(truth[start : start + 7], found[start : start + 7], 4)
    np.testing.assert_array_equal(parts.precision(4), expected)


def test_a_draw_of_each_picture_once_is_the_metric():
    truth, found = pictures(20, 3)
    for number, rows in enumerate(found):  # of equal scores within a picture the order of a draw is another one
        rows[:, 5] = np.random.default_rng(number).permutation(len(rows)) / 64 + number / 4096
    kept = KeptMatches()
    kept.add(truth, found, 3)
    for label in range(3):
        matches = kept.of(label)
        assert matches is not None
        np.testing.assert_allclose(matches.precision(np.ones(20)), kept.precision(3)[..., label], atol=1e-12)
        twice = KeptMatches()
        twice.add([truth[0], *truth], [found[0], *found], 3)
        draw = np.ones(20)
        draw[0] = 2
        np.testing.assert_allclose(matches.precision(draw), twice.precision(3)[..., label], atol=1e-12)


def test_a_few_bytes_of_a_detection_are_kept():
    """Boxes are not: a detection and its label made some 900 bytes of Python objects."""
    truth, found = pictures(200, 3)
    detections = sum(map(len, found))
    KeptMatches().add(truth[:10], found[:10], 3)  # what is imported and cached on the first use is not kept for these
    tracemalloc.start()
    try:
        kept = KeptMatches()
        for start in range(0, 200, 10):
            kept.add(truth[start : start + 10], found[start : start + 10], 3)
            for part in (kept._labels, kept._owners, kept._scores, kept._right, kept._wrong):
                part[:] = [np.concatenate(part)]
        gc.collect()
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert size < 14 * detections + 200 * 3 * 4 + 30_000  # the last: twenty small arrays, and what Python keeps


def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"a task with boxes needs postprocess = \{"):
        resolve_metric("map")
    with pytest.raises(UserError, match=r"map: score = 1\.5: give 0 to 1"):
        resolve_metric("map", postprocess=TABLE, score=1.5)
    with pytest.raises(UserError, match=r"box 0 \(0, 0, 8, 8, 2\) has a class that is none of 0 to 1"):
        measured("map", outputs({}), [[*BOX, 2]])
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("pycocotools"):
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Unavailable) as caught:
        resolve_metric("map", postprocess=TABLE)
    assert str(caught.value) == "pycocotools is not installed: pip install 'mtlc[compress]'"
