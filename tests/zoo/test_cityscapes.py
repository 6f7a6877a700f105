"""Cityscapes in each layout: classes, disparities and depths by hand, and what does not fit in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from testkit.dense_samples import STORED, TRAIN_IDS, write_cityscapes, write_picture

from mtlc.errors import UserError
from mtlc.zoo.cityscapes import BASELINE, CLASSES, FOCAL_LENGTH, GROUPS, cityscapes

EVERYTHING = ["semseg", "depth", "disparity"]
PIXELS = np.where(STORED == 0, np.nan, (STORED.astype(float) - 1) / 256)
"""Disparities in pixels of the published size."""


@pytest.mark.parametrize("layout", ["labelIds", "labelTrainIds", "numbered"])
def test_each_layout_gives_the_same_classes_and_disparities(tmp_path: Path, layout: str):
    splits = cityscapes(write_cityscapes(tmp_path / "city", layout), tasks=EVERYTHING)
    assert (len(splits.train), len(splits.calibration), len(splits.validation)) == (1, 1, 1)
    data = splits.train.whole
    assert data.classes == CLASSES
    assert len(CLASSES) == 19
    sample = data[1]
    np.testing.assert_array_equal(sample["semseg"], TRAIN_IDS)
    np.testing.assert_allclose(sample["disparity"][0], PIXELS * 4 / 2048, rtol=1e-6)  # the pictures are 4 pixels wide
    focal = BASELINE * FOCAL_LENGTH if layout == "numbered" else 0.2 * 2000
    with np.errstate(divide="ignore"):
        metres = focal / PIXELS
    np.testing.assert_allclose(sample["depth"][0], np.where(metres <= 80, metres, 0), rtol=1e-6)
    assert sample["depth"][0, 0, 0] == 0  # stored 0: none
    assert sample["depth"][0, 0, 1] == 0  # stored 1: endlessly far
    assert sample["disparity"][0, 0, 1] == 0
    assert float(sample["depth"][0, 1, 2]) == pytest.approx(focal / 100)  # stored 25601
    assert set(cityscapes(tmp_path / "city").validation[0]) == {"image", "semseg", "depth"}


def test_groups_cameras_and_the_farthest_depth(tmp_path: Path):
    root = write_cityscapes(tmp_path / "city", cameras=False)
    data = cityscapes(root, classes=7, max_depth=5000).validation
    assert data.classes == GROUPS
    expected = np.array([[0, 0, 1, 6], [255, 255, 6, 6], [255, 4, 5, 2]])
    np.testing.assert_array_equal(data[0]["semseg"], expected)
    assert float(data[0]["depth"][0, 0, 2]) == pytest.approx(BASELINE * FOCAL_LENGTH, rel=1e-5)  # stored 257: 1 pixel
    assert cityscapes(root).identity != cityscapes(root, max_depth=50).identity


def test_resizing_keeps_disparities_in_pixels_of_the_picture(tmp_path: Path):
    root = write_cityscapes(tmp_path / "city")
    small = cityscapes(root, tasks=EVERYTHING, size=[3, 2]).validation[0]
    large = cityscapes(root, tasks=EVERYTHING).validation[0]
    np.testing.assert_allclose(small["disparity"][0], large["disparity"][0, :, [1, 3]] / 2)
    np.testing.assert_array_equal(small["depth"][0], large["depth"][0, :, [1, 3]])  # metres are metres


def test_disparities_of_eight_bits_are_refused(tmp_path: Path):
    root = write_cityscapes(tmp_path / "city", "numbered")
    write_picture(root / "val" / "depth" / "0.png", np.zeros((3, 4), np.uint8))
    with pytest.raises(UserError, match=r"\[data\] depth: .*0\.png: a picture of mode L; disparities are stored in 16"):
        cityscapes(root).validation[0]
    write_picture(root / "val" / "depth" / "0.png", np.zeros((3, 4, 3), np.uint8))
    with pytest.raises(UserError, match="a picture of mode RGB"):
        cityscapes(root, tasks=["disparity"]).validation[0]
    write_picture(root / "val" / "seg" / "0.png", np.full((3, 4), 34, np.uint8))
    with pytest.raises(UserError, match=r"\[data\] semseg: .*class 34, but Cityscapes counts 0 to 33 or 255"):
        cityscapes(root, tasks=["semseg"]).validation[0]


@pytest.mark.parametrize("content", ["", "[]", '{"extrinsic": {"baseline": -1}, "intrinsic": {"fx": 2}}', "[" * 9999])
def test_a_camera_that_is_none(tmp_path: Path, content: str):
    root = write_cityscapes(tmp_path / "city")
    camera = next((root / "camera" / "val").glob("*/*.json"))
    camera.write_text(content)
    with pytest.raises(UserError, match=r"\[data\] depth: .*_camera\.json: no camera that can be read") as error:
        cityscapes(root).validation[0]
    assert "\n" not in str(error.value)


def test_folders_of_another_layout_are_told(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder; put Cityscapes there"):
        cityscapes(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"neither leftImg8bit/ as published nor train/image/0\.png"):
        cityscapes(tmp_path)
    root = write_cityscapes(tmp_path / "city", "numbered")
    write_picture(root / "train" / "image" / "a.png", np.zeros((3, 4, 3), np.uint8))
    with pytest.raises(UserError, match=r"a\.png: pictures of this layout are called by numbers"):
        cityscapes(root)
    with pytest.raises(UserError, match=r"classes = 20: 19, or 7"):
        cityscapes(root, classes=20)
    with pytest.raises(UserError, match="max_depth = 0: give metres"):
        cityscapes(root, max_depth=0)
    (tmp_path / "other" / "leftImg8bit" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no picture CITY/NAME_leftImg8bit\.png in it"):
        cityscapes(tmp_path / "other")
