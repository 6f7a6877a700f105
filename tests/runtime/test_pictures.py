import contextlib
import io
import os
import struct
import sys
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

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


def png(width: int, height: int) -> bytes:
    """A PNG file that says its size and has next to no content."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(13_000, 13_000), (8193, 8192), (1 << 27, 1)])
def test_a_picture_that_is_too_large_is_not_decoded(tmp_path, size):
    (tmp_path / "a.png").write_bytes(png(*size))
    with pytest.raises(UserError, match=rf"a.png: {size[0]} × {size[1]} pixels, more than the 67108864 that are read"):
        read_image(tmp_path / "a.png")


def test_a_picture_within_the_limit_is_decoded(tmp_path):
    (tmp_path / "a.png").write_bytes(png(8192, 8192))
    with pytest.raises(UserError, match="not a picture that can be read"):
        read_image(tmp_path / "a.png")


def test_formats_that_other_programs_would_decode(tmp_path):
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match="not a picture that can be read"):
        read_image(tmp_path / "a.eps")


def test_a_pipe_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: not a plain file"):
        read_image(tmp_path / "a.png")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]),
    st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3)), min_size=1, max_size=3),
)
def test_damaged_pictures_are_read_or_refused_in_one_line(tmp_path, kind, edits):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)).save(buffer, kind)
    data = buffer.getvalue()
    for share, new in edits:
        at = int(share * len(data))
        data = data[:at] + new + data[at + len(new) :]
    (tmp_path / "a").write_bytes(data)
    with contextlib.suppress(UserError):
        assert read_image(tmp_path / "a").dtype == np.uint8


@pytest.mark.parametrize(("mode", "orientation"), [("RGB", 1), ("RGB", 6), ("L", 8), ("RGBA", 3), ("P", 1)])
def test_modes_and_orientations(tmp_path, mode, orientation):
    """As Pillow turns and converts them."""
    made = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    made.save(tmp_path / "a.png", exif=exif)
    turned = {1: made, 3: made.rotate(180), 6: made.rotate(-90, expand=True), 8: made.rotate(90, expand=True)}
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.array(turned[orientation].convert("RGB")))


def test_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(Unavailable, match=r"Pillow is not installed: pip install 'mtlc\[images\]'"):
        read_image(tmp_path / "a.png")
