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
from mtlc.runtime.pictures import _ANCHORS, _PALETTE, eight_bit


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


RAMP = np.linspace(0, 65535, 1024).astype(np.uint16).reshape(32, 32)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled(tmp_path, suffix):
    Image.fromarray(RAMP).save(tmp_path / f"a.{suffix}")
    shown = read_image(tmp_path / f"a.{suffix}")
    assert shown.shape == (32, 32, 3)
    assert shown.mean() == pytest.approx(127.5, abs=0.1)
    assert len(np.unique(shown)) == 256
    np.testing.assert_allclose(shown[..., 0], RAMP / 257, atol=0.5)


def test_a_grey_of_16_bits_may_be_transparent(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png", transparency=int(RAMP[3, 3]))
    with pytest.raises(UserError, match="has transparent pixels"):
        read_image(tmp_path / "a.png")


def test_16_bits_as_older_versions_of_pillow_read_them():
    image = Image.fromarray(RAMP.astype(np.int32))
    assert image.mode == "I"
    np.testing.assert_array_equal(np.asarray(eight_bit(image, "a.png", "PNG"))[..., 1], np.rint(RAMP / 257))


@pytest.mark.parametrize("values", [(RAMP / 65535).astype(np.float32), RAMP.astype(np.int32)])
def test_pixels_whose_white_nobody_knows_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif: its pixels are (floats|integers of more than 16 bit), of which"):
        read_image(tmp_path / "a.tif")


COLOURS = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGB", "L"])
def test_a_transparent_pixel_has_no_colour(tmp_path, mode, transparent):
    """An alpha channel that is opaque all over changes nothing; in other modes one colour is declared transparent."""
    base = Image.fromarray(COLOURS).quantize(4) if mode in ("P", "PA") else Image.fromarray(COLOURS)
    image = base if mode == "P" else base.convert(mode)
    expected = np.asarray(image.convert("RGB"))
    settings = {}
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(np.full((8, 6), 255, np.uint8)))
        if transparent:
            image.putpixel((2, 3), (*np.atleast_1d(image.getpixel((2, 3)))[:-1].tolist(), 200))
    elif transparent:
        settings = {"transparency": image.getpixel((2, 3))}
    suffix = "tif" if mode == "PA" else "png"
    image.save(tmp_path / f"a.{suffix}", **settings)
    if transparent:
        with pytest.raises(UserError, match="has transparent pixels"):
            read_image(tmp_path / f"a.{suffix}")
    else:
        np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), expected)


def test_inks_become_colours(tmp_path):
    """(1 − C)(1 − K): no ink is white, full cyan has no red, half black over it halves the rest."""
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [255, 0, 0, 128], [0, 0, 0, 255]]], np.uint8)
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "a.tif")
    shown = read_image(tmp_path / "a.tif").astype(int)
    np.testing.assert_allclose(shown[0], [[255, 255, 255], [0, 255, 255], [0, 127, 127], [0, 0, 0]], atol=1)


def test_inks_with_a_profile_that_is_none_are_refused(tmp_path):
    Image.new("CMYK", (4, 4)).save(tmp_path / "a.tif", icc_profile=b"no profile")
    with pytest.raises(UserError, match="the colour profile of its inks cannot be used"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("suffix", "values"),
    [
        ("png", COLOURS),
        ("tif", COLOURS),
        ("webp", COLOURS),
        ("tif", (RAMP[:8, :6] >> 8).astype(np.uint8)),
        ("png", RAMP[:8, :6]),
        ("tif", RAMP[:8, :6]),
    ],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_exif_says(tmp_path, suffix, values, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(values).save(tmp_path / f"a.{suffix}", exif=exif, **settings)
    grey = values if values.ndim == 3 else values[..., None].repeat(3, 2)
    grey = np.rint(grey / 257) if values.dtype == np.uint16 else grey
    # What the first row and the first column of the file are on the picture, after the EXIF standard's table.
    turned = {
        1: grey, 2: grey[:, ::-1], 3: grey[::-1, ::-1], 4: grey[::-1], 5: grey.swapaxes(0, 1),
        6: np.rot90(grey, -1), 7: grey[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(grey),
    }  # fmt: skip
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), turned[orientation])


def test_black_and_white_and_a_palette(tmp_path):
    Image.fromarray(COLOURS[..., 0] > 127).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[..., 2], 255 * (COLOURS[..., 0] > 127))
    indexed = Image.new("P", (2, 1))
    indexed.putpalette([10, 20, 30, 200, 100, 50])
    indexed.putpixel((1, 0), 1)
    indexed.save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), [[[10, 20, 30], [200, 100, 50]]])


def test_pictures_that_cannot_be_read_or_written(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"not a picture that can be read \(it is none of BMP, GIF"):
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
