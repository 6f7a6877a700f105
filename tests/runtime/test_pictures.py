import sys

import numpy as np
import pytest

from mtlc.errors import Unavailable, UserError
from mtlc.runtime import picture, read_image, write_png
from mtlc.runtime.pictures import _ANCHORS, _PALETTE


def test_labels_take_the_largest_score():
    scores = np.zeros((3, 2, 2), np.float32)
    scores[2, 0, 1] = scores[1, 1, 1] = 5
    shown = picture("labels", scores)
    np.testing.assert_array_equal(shown, _PALETTE[[[0, 2], [0, 1]]])
    np.testing.assert_array_equal(picture("labels", np.array([[0, 2], [16, 17]])), _PALETTE[[[0, 2], [0, 1]]])


def test_scalar_ends_and_middle():
    shown = picture("scalar", np.array([[0.0, 5.0, 10.0, np.nan, -3.0]], np.float32), low=0, high=10)
    np.testing.assert_array_equal(shown[0, [0, 1, 2]], _ANCHORS[[0, 4, 8]].astype(np.uint8))
    np.testing.assert_array_equal(shown[0, 3], 0)
    np.testing.assert_array_equal(shown[0, 4], shown[0, 0])


def test_scalar_is_lighter_where_it_is_more():
    shown = picture("scalar", np.linspace(0, 1, 100)[None], low=0, high=1).astype(float)
    lightness = shown @ [0.299, 0.587, 0.114]
    assert (np.diff(lightness[0]) >= -1).all()
    assert lightness[0, -1] - lightness[0, 0] > 150


def test_scalar_of_one_value_or_none():
    assert picture("scalar", np.ones((1, 4, 4))).shape == (4, 4, 3)
    assert not picture("scalar", np.full((1, 4, 4), np.nan)).any()


def test_normals():
    array = np.zeros((3, 1, 3), np.float32)
    array[:, 0, 0], array[:, 0, 1] = (0, 0, 9), (-2, 0, 0)
    np.testing.assert_array_equal(picture("normals", array)[0], [[128, 128, 255], [0, 128, 128], [128, 128, 128]])


def test_probability():
    np.testing.assert_array_equal(picture("probability", np.array([[0, 0.5, 1.0]]))[0, :, 0], [0, 128, 255])
    np.testing.assert_array_equal(picture("probability", np.array([[-50.0, 0, 50]]))[0, :, 0], [0, 128, 255])
    np.testing.assert_array_equal(picture("probability", np.array([[0.0]]), logits=True)[0, 0], [128] * 3)


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("sound", (1, 2, 2), "no picture of kind 'sound'"),
        ("normals", (2, 2, 2), "normals have 3 channels, not 2"),
        ("scalar", (2, 3, 4, 5), "a picture is made of an array"),
        ("scalar", (0, 4, 4), "a picture is made of an array"),
    ],
)
def test_what_is_no_picture(kind, shape, message):
    with pytest.raises(UserError, match=message):
        picture(kind, np.zeros(shape))


def test_a_picture_is_read_as_it_was_written(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    write_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)
    assert read_image(tmp_path / "a.png", (10, 4)).shape == (10, 4, 3)


def test_pictures_that_cannot_be_read_or_written(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="not a picture that can be read"):
        read_image(tmp_path / "a.png")
    with pytest.raises(UserError, match="cannot be written"):
        write_png(tmp_path / "no" / "a.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(UserError, match="a picture is uint8"):
        write_png(tmp_path / "b.png", np.zeros((2, 2, 3), np.float32))


def test_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(Unavailable, match=r"Pillow is not installed: pip install 'mtlc\[images\]'"):
        read_image(tmp_path / "a.png")
