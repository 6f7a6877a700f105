"""Decoding of raw outputs into boxes against numbers worked out by hand, and what a declaration must be."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlc.box_decoding import decode_boxes, detect, overlaps, pad_boxes, suppress_overlaps
from mtlc.detection import Detection
from mtlc.errors import UserError

TABLE = {"kind": "detection", "size": [8, 16], "strides": [8]}


def raw(*rows: list[float]) -> np.ndarray:
    return np.array([rows], np.float32)


def test_points_are_the_middles_of_cells_or_their_corners():
    middles = Detection.parse(TABLE | {"strides": [8, 16]})
    np.testing.assert_array_equal(middles.points, [[4, 4, 8], [12, 4, 8], [8, 8, 16]])  # 16 does not divide 8: one row
    assert middles.maps == ((1, 2), (1, 1))
    assert middles.anchors == 3
    corners = Detection.parse(TABLE | {"encoding": "center_size"})
    np.testing.assert_array_equal(corners.points, [[0, 0, 8], [8, 0, 8]])


def test_distances():
    how = Detection.parse(TABLE | {"objectness": False})
    # From (4, 4): 4 to the left and up (exp(ln .5) · 8), 8 to the right, 2 down. From (12, 4): beyond all borders.
    half, quarter = math.log(0.5), math.log(0.25)
    output = raw([half, half, 0, quarter, 0, 2], [5, 5, 5, 5, 0, 0])
    boxes, scores = decode_boxes(output, how)
    np.testing.assert_allclose(boxes[0], [[0, 0, 12, 6], [0, 0, 16, 8]], atol=1e-5)
    np.testing.assert_allclose(scores[0, 0], [0.5, 1 / (1 + math.exp(-2))], rtol=1e-6)


def test_centre_and_size():
    how = Detection.parse(TABLE | {"encoding": "center_size"})
    # Centre (0 + .5) · 8 = 4 and (0 + .5) · 8 = 4, size 4 × 2. Objectness .5 and class .5: a score of .25.
    output = raw([0.5, 0.5, math.log(0.5), math.log(0.25), 0, 0], [0.25, 0.5, 100, -100, 0, 0])
    boxes, scores = decode_boxes(output, how)
    np.testing.assert_allclose(boxes[0, 0], [2, 3, 6, 5], atol=1e-6)
    np.testing.assert_allclose(boxes[0, 1], [0, 4, 16, 4], atol=1e-3)  # exponents are cut: finite, and in the picture
    assert scores[0, 0, 0] == pytest.approx(0.25)


def test_overlaps():
    box = np.array([0, 0, 4, 4], np.float32)
    others = np.array([[0, 0, 4, 4], [2, 0, 6, 4], [4, 0, 8, 4], [1, 1, 1, 1]], np.float32)
    np.testing.assert_allclose(overlaps(box, others), [1, 8 / 24, 0, 0])
    assert overlaps(others[3], others[3:]) == 0  # two of no area


def test_a_box_goes_where_it_overlaps_a_better_one_by_more_than_the_limit():
    boxes = np.array([[0, 0, 4, 4], [2, 0, 6, 4], [4, 0, 8, 4]], np.float32)
    scores = np.array([0.5, 0.9, 0.7], np.float32)
    assert suppress_overlaps(boxes, scores, 0.1, 0.3, 10) == [1]  # both others overlap it by a third
    assert suppress_overlaps(boxes, scores, 0.1, 0.34, 10) == [1, 2, 0]
    assert suppress_overlaps(boxes, scores, 0.6, 0.34, 10) == [1, 2]
    assert suppress_overlaps(boxes, scores, 0.1, 0.34, 2) == [1, 2]
    assert suppress_overlaps(boxes, np.full(3, 0.5, np.float32), 0.1, 0.3, 10) == [0, 2]  # the first of equals
    assert suppress_overlaps(boxes, scores, 0.9, 0.3, 10) == []  # a score at the limit is not above it


def test_detections_are_sorted_and_filled_up():
    how = Detection.parse(TABLE | {"objectness": False, "score": 0.6, "most": 3})
    zero = [0.0] * 4
    # Two classes: .88 and .73 of class 1, .95 of class 0 at the first point; .5 does not count.
    found = detect(raw([*zero, 3, 1], [*zero, 0, 2]), how)
    assert found.shape == (1, 3, 6)
    np.testing.assert_array_equal(found[0, :, 4], [0, 1, 1])
    np.testing.assert_allclose(found[0, :, 5], [0.952574, 0.880797, 0.731059], rtol=1e-5)
    np.testing.assert_array_equal(found[0, 1, :4], [4, 0, 16, 8])
    nothing = detect(raw([*zero, -3, -3], [*zero, -3, -3]), how)
    np.testing.assert_array_equal(nothing[0], [[0, 0, 0, 0, -1, 0]] * 3)


def test_there_are_no_more_rows_than_boxes_can_be():
    how = Detection.parse(TABLE | {"objectness": False})
    assert detect(np.zeros((2, 2, 6), np.float32), how).shape == (2, 4, 6)
    assert detect(np.zeros((0, 2, 6), np.float32), how).shape == (0, 4, 6)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(1e-4, 1), st.floats(1e-4, 1), st.sampled_from(["distances", "center_size"]))
def test_what_holds_for_all_detections(seed: int, score: float, iou: float, encoding: str):
    table = {"kind": "detection", "size": [16, 24], "strides": [4, 8], "encoding": encoding, "score": score, "iou": iou}
    how = Detection.parse(table)
    output = np.random.default_rng(seed).normal(0, 2, (2, how.anchors, 8)).astype(np.float32)
    for rows in detect(output, how):
        real = rows[rows[:, 4] >= 0]
        assert (real[:, 5] > score).all()
        assert (np.diff(real[:, 5]) <= 0).all()
        assert (rows[len(real) :] == [0, 0, 0, 0, -1, 0]).all()
        assert ((real[:, :4] >= 0) & (real[:, :4] <= [24, 16, 24, 16])).all()
        for label in range(3):
            same = real[real[:, 4] == label][:, :4]
            for place, box in enumerate(same):
                assert (overlaps(box, same[place + 1 :]) <= np.float32(iou)).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "boxes"}, "postprocess.kind = 'boxes': must be 'detection'"),
        ({"size": [8]}, "postprocess.size = [8]: give a height and a width in pixels"),
        ({"size": 8}, "postprocess.size = 8: must be one or more whole numbers from 1 to 16384"),
        ({"size": [8, 0]}, "postprocess.size = [8, 0]: must be one or more whole numbers from 1 to 16384"),
        ({"size": [8, True]}, "postprocess.size = [8, True]: must be one or more whole numbers from 1 to 16384"),
        ({"strides": []}, "postprocess.strides = []: must be one or more whole numbers from 1 to 16384"),
        ({"strides": [4, 4]}, "postprocess.strides = [4, 4]: lists a stride twice"),
        ({"strides": [4.0]}, "postprocess.strides = [4.0]: must be one or more whole numbers from 1 to 16384"),
        ({"size": [16384, 16384], "strides": [1]}, "size and strides give 268435456 points, more than 1048576"),
        ({"encoding": "ltrb"}, "postprocess.encoding = 'ltrb': must be one of distances, center_size"),
        ({"encoding": ["distances"]}, "postprocess.encoding = ['distances']: must be one of distances, center_size"),
        ({"objectness": 1}, "postprocess.objectness = 1: must be true or false"),
        ({"score": 0}, "postprocess.score = 0: must lie between 0.0001 and 1"),
        ({"score": 1.5}, "postprocess.score = 1.5: must lie between 0.0001 and 1"),
        ({"score": math.nan}, "postprocess.score = nan: must lie between 0.0001 and 1"),
        ({"iou": "0.5"}, "postprocess.iou = '0.5': must lie between 0.0001 and 1"),
        ({"most": 0}, "postprocess.most = 0: must be a whole number from 1 to 4096"),
        ({"names": ["a", ""]}, "postprocess.names must be a list of texts of 1 to 200 characters"),
        ({"names": "ab"}, "postprocess.names must be a list of texts of 1 to 200 characters"),
        ({"scores": 0.5}, "postprocess.scores is unknown; did you mean 'score'"),
    ],
)
def test_bad_declarations(change: dict[str, object], words: str):
    with pytest.raises(UserError) as caught:
        Detection.parse(TABLE | change)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_parts():
    for key in TABLE:
        with pytest.raises(UserError, match=f"postprocess.{key} is missing"):
            Detection.parse({name: value for name, value in TABLE.items() if name != key})
    with pytest.raises(UserError, match="postprocess must be a table, it is list"):
        Detection.parse([])


def test_a_declaration_comes_back():
    table = TABLE | {
        "encoding": "center_size",
        "objectness": False,
        "score": 0.1,
        "iou": 0.7,
        "most": 5,
        "names": ["a"],
    }
    assert Detection.parse(table).to_dict() == table
    assert Detection.parse(Detection.parse(TABLE).to_dict()) == Detection.parse(TABLE)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 7), "expected an output (N, 2, 5 + classes) for size [8, 16] and strides [8], but it is (1, 3, 7)"),
        ((1, 2), "expected an output (N, 2, 5 + classes) for size [8, 16] and strides [8], but it is (1, 2)"),
        ((1, 2, 5), "expected an output (N, 2, 5 + classes), but (1, 2, 5) leaves no class"),
        ((1, 2, 8), "postprocess.names has 2 names, but the output (1, 2, 8) has 3 classes"),
    ],
)
def test_outputs_that_do_not_fit(shape: tuple[int, ...], words: str):
    with pytest.raises(UserError) as caught:
        detect(np.zeros(shape, np.float32), Detection.parse(TABLE | {"names": ["a", "b"]}))
    assert str(caught.value) == words


def test_boxes_are_filled_up():
    np.testing.assert_array_equal(pad_boxes([(1, 2, 3, 4, 0)], 2), [[1, 2, 3, 4, 0], [0, 0, 0, 0, -1]])
    assert pad_boxes([], 3).shape == (3, 5)
    with pytest.raises(UserError, match="2 boxes do not fit into 1 rows"):
        pad_boxes([(1, 2, 3, 4, 0)] * 2, 1)
