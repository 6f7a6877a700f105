"""Pictures in a network's input of another size, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mtlc.errors import BundleError, UserError
from mtlc.runtime import Session
from mtlc.runtime.bundle.manifest import RESIZES
from mtlc.runtime.picture_fit import Fit, _taps, resized


def gradient(height: int, width: int) -> np.ndarray:
    """A picture whose values rise evenly from the left and from above."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([255 * rows / height, 255 * columns / width, 0 * rows + 7], -1).astype(np.uint8)


@pytest.mark.parametrize(
    ("picture", "network", "how", "place"),
    [
        ((40, 80), (20, 20), "stretch", (0, 0, 20, 20)),
        ((40, 80), (20, 20), "pad", (5, 0, 10, 20)),
        ((80, 40), (20, 20), "pad", (0, 5, 20, 10)),
        ((40, 80), (20, 20), "pad_end", (0, 0, 10, 20)),
        ((10, 10), (20, 40), "pad", (0, 10, 20, 20)),
        ((1, 1000), (20, 20), "pad", (9, 0, 1, 20)),
        ((20, 20), (20, 20), "pad", (0, 0, 20, 20)),
    ],
)
def test_where_a_picture_lies(picture, network, how, place):
    fit = Fit.of(picture, network, how)
    assert (fit.top, fit.left, fit.height, fit.width) == place
    made = fit.apply(np.full((*picture, 3), 9, np.uint8), 114)
    assert made.shape == (*network, 3)
    top, left, height, width = place
    assert (made[top : top + height, left : left + width] == 9).all()
    assert int((made == 9).sum()) == 3 * height * width
    assert int((made == 114).sum()) == 3 * (network[0] * network[1] - height * width)


@pytest.mark.parametrize("size", [(16, 24), (7, 5), (64, 100), (31, 40), (40, 31), (1, 1)])
def test_sizes_change_as_pillow_changes_them(size):
    image = np.random.default_rng(0).integers(0, 256, (40, 31, 3), dtype=np.uint8)
    theirs = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    # Pillow rounds to whole numbers after each axis.
    assert np.abs(resized(image, size) - np.asarray(theirs, np.float32)).max() < 1.01


@pytest.mark.parametrize("shape", [(40, 31), (40, 31, 3), (31, 40, 20), (300, 3, 1)])
@pytest.mark.parametrize("size", [(16, 24), (64, 31), (7, 400)])
def test_every_product_and_sum_is_rounded_in_order(shape, size):
    """To the bit what one number after another gives, as in the C library, however many are worked out at a time."""
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = image.astype(np.float32)
    for axis in (0, 1):
        if size[axis] == shape[axis]:
            continue
        places, weights = _taps(size[axis], 0.0, float(shape[axis]), shape[axis])
        moved = np.moveaxis(expected, axis, 0)
        rows = []
        for at, by in zip(places, weights, strict=True):
            row = moved[at[0]] * by[0]
            for place, weight in zip(at[1:], by[1:], strict=True):
                row = row + moved[place] * weight
            rows.append(row)
        expected = np.moveaxis(np.stack(rows), 0, axis)
    found = resized(image, size)
    assert found.dtype == expected.dtype == np.float32
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("how", RESIZES)
@pytest.mark.parametrize(("picture", "output"), [((48, 96), (24, 32)), ((30, 20), (24, 32)), ((96, 192), (12, 16))])
def test_what_went_in_comes_back(how, picture, output):
    """An output that is its input, at any resolution, is the picture again up to what shrinking loses."""
    fit = Fit.of(picture, (24, 32), how)
    image = gradient(*picture)
    inside = resized(fit.apply(image, 255), output).transpose(2, 0, 1)
    back = fit.back(inside)
    assert back.shape == (3, *picture)
    margin = 2 * max(picture[0] * 24 // (output[0] * fit.height), picture[1] * 32 // (output[1] * fit.width)) + 1
    middle = (slice(None), slice(margin, -margin), slice(margin, -margin))
    assert np.abs(back - image.transpose(2, 0, 1))[middle].max() < 10
    if how != "stretch" and output == (24, 32):
        assert (back[2] < 8).all(), "nothing of the padding, which is white"


def test_classes_come_back_by_their_scores():
    fit = Fit.of((40, 80), (20, 20), "pad")
    scores = np.zeros((3, 20, 20), np.float32)
    scores[1, :, :10], scores[2, :, 10:] = 1, 2
    scores[0, :5], scores[0, 15:] = 9, 9  # what is said of the padding
    classes = fit.back_classes(scores)
    assert classes.shape == (40, 80)
    assert set(np.unique(classes)) == {1, 2}
    assert (classes == scores.argmax(0)[10, (np.arange(80) // 4)]).mean() > 0.97


def test_boxes_come_back_within_the_picture():
    fit = Fit.of((40, 80), (20, 20), "pad")  # 4 pixels of the picture to one, 5 rows of padding above
    rows = np.array([[0, 5, 10, 10, 2, 0.9], [-3, 0, 25, 20, 1, 0.8], [0, 0, 0, 0, -1, 0]], np.float32)
    back = fit.back_boxes(rows)
    assert back[:2].tolist() == [[0, 0, 40, 20, 2, pytest.approx(0.9)], [0, 0, 80, 40, 1, pytest.approx(0.8)]]
    assert back[2, 4] == -1


sides = st.integers(1, 40)


@given(st.tuples(sides, sides), st.tuples(sides, sides), st.sampled_from(RESIZES))
def test_a_flat_picture_stays_flat_in_any_size(picture, network, how):
    fit = Fit.of(picture, network, how)
    assert 0 <= fit.top <= fit.top + fit.height <= network[0]
    assert 0 <= fit.left <= fit.left + fit.width <= network[1]
    inside = fit.apply(np.full((*picture, 3), 77, np.uint8), 255)
    back = fit.back(inside.transpose(2, 0, 1).astype(np.float32))
    assert back.shape == (3, *picture)
    np.testing.assert_allclose(back, 77, atol=1e-3)


def test_a_session_fits_pictures_and_restores_outputs(make_bundle):
    """The network doubles: `plus` is 2x and a weight. x is the pixel."""
    how = {"scale": 1.0, "mean": [0.0], "std": [1.0], "color": "RGB", "layout": "NCHW", "resize": "pad", "fill": 50}
    with Session(make_bundle(edit=lambda m: m.update(preprocessing=how))) as session:
        image = np.full((30, 60, 3), 8, np.uint8)
        x = session.preprocess(image)
        assert x.shape == (1, 3, 20, 20)
        assert (x[:, :, 5:15] == 8).all()
        assert (x[:, :, :5] == 50).all()
        restored = session.restore(session.run(x, tasks=["square", "less"]), image.shape[:2])
        assert {name: array.shape for name, array in restored.items()} == dict.fromkeys(
            ("square", "less"), (1, 3, 30, 60)
        )
        np.testing.assert_allclose(restored["square"], 16**2, rtol=1e-6)
        np.testing.assert_allclose(restored["less"], 16**2 - 1, rtol=1e-6)
        assert session.manifest.to_dict()["preprocessing"] == how | {"std": [1.0]}
        for size in ((0, 4), (4,), (4.5, 3), (-1, 2)):
            with pytest.raises(UserError, match="give height and width of the picture"):
                session.restore({}, size)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"resize": "squeeze"}, "preprocessing.resize"),
        ({"resize": "pad", "fill": 300}, "preprocessing.fill = 300: must be the value of a pixel, from 0 to 255"),
        ({"resise": "pad"}, "preprocessing.resise is unknown; it has scale, mean, std, color, layout, resize, fill"),
    ],
)
def test_a_bundle_that_says_it_wrong(make_bundle, change, line):
    with pytest.raises(BundleError) as error:
        Session(make_bundle(edit=lambda m: m["preprocessing"].update(change)))
    assert line in str(error.value)


def test_what_a_bundle_does_not_say_is_not_written(bundle):
    """So that a runtime of before opens what needs nothing new."""
    with Session(bundle) as session:
        assert set(session.manifest.to_dict()["preprocessing"]) == {"scale", "mean", "std", "color", "layout"}
