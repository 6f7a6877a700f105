"""The boxes of generated scenes, and that augmentation moves them with the picture."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mtlc.errors import UserError
from mtlc.zoo import scenes
from mtlc.zoo.dense import flip, flip_boxes, magnify, magnify_boxes
from mtlc.zoo.furniture import CLASSES, OBJECTS
from mtlc.zoo.label_files import resize_label
from mtlc.zoo.nyud import MultiTaskFolder, write_scenes
from mtlc.zoo.scenes import MOST_BOXES, boxes, drivable, render

TASKS = ["detection", "floor", "depth"]
NOTHING = [0, 0, 0, 0, -1]


def test_the_box_holds_all_visible_pixels_of_its_object():
    instance = np.zeros((40, 50), np.int32)
    instance[10:20, 30:45] = 101
    instance[12:14, 36:38] = 0  # something in front of it
    instance[30:33, 2] = 102  # 3 of 2000 pixels: too few
    instance[0:8, 0] = 103
    found = boxes(instance, {103: 0, 101: 4, 102: 1, 104: 2})
    assert found.shape == (MOST_BOXES, 5)
    np.testing.assert_array_equal(found[:3], [[30, 10, 45, 20, 4], [0, 0, 1, 8, 0], NOTHING])
    np.testing.assert_array_equal(boxes(np.zeros((8, 8), np.int32), {}), [NOTHING] * MOST_BOXES)


def test_boxes_of_scenes_fit_the_segmentation():
    made = render(12, 64, seed=7)
    objects = [CLASSES.index(name) for name in OBJECTS]
    for semseg, rows in zip(made["semseg"], made["detection"], strict=True):
        covered = np.zeros((64, 64), bool)
        for x1, y1, x2, y2, label in rows[rows[:, 4] >= 0].astype(int):
            assert 0 <= x1 < x2 <= 64
            assert 0 <= y1 < y2 <= 64
            inside = semseg[y1:y2, x1:x2] == objects[label]
            assert all(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            covered[y1:y2, x1:x2] = True
        # What stands in no box is an object of which too little is seen.
        left = np.isin(semseg, objects) & ~covered
        assert left.sum() < 3 * 0.003 * left.size
    np.testing.assert_array_equal(made["floor"], drivable(made["semseg"]))
    assert set(np.unique(made["semseg"][made["floor"] == 1])) == {CLASSES.index("floor"), CLASSES.index("rug")}


def test_a_mirrored_box():
    rows = torch.tensor([[[3.0, 1, 10, 5, 2], NOTHING]])
    assert flip_boxes(rows, 64).tolist() == [[[54, 1, 61, 5, 2], NOTHING]]
    torch.testing.assert_close(flip_boxes(flip_boxes(rows, 64), 64), rows)
    batch = {"image": torch.zeros(2, 3, 8, 64), "detection": rows.repeat(2, 1, 1)}
    assert flip(batch, torch.tensor([True, False]))["detection"][:, 0].tolist() == [[54, 1, 61, 5, 2], [3, 1, 10, 5, 2]]


def test_a_magnified_box():
    # The window of half the size begins at (16, 0) of 32 × 32 pixels.
    scale, corner = torch.tensor([2.0]), torch.tensor([[1.0, 0.0]])
    rows = torch.tensor(
        [[[18.0, 2, 20, 6, 0], [12, 2, 20, 6, 1], [15, 12, 17, 30, 2], [2, 2, 6, 6, 3], [9, 0, 17, 16, 4], NOTHING]]
    )
    moved = magnify_boxes(rows, scale, corner, 32, 32)[0].tolist()
    assert moved[0] == [4, 4, 8, 12, 0]
    assert moved[1] == [0, 4, 8, 12, 1]  # half of it is left
    assert moved[2] == NOTHING  # 1 · 4 of its 2 · 18 pixels are left
    assert moved[3] == NOTHING  # outside
    assert moved[4] == NOTHING  # an eighth
    assert moved[5] == NOTHING


def test_boxes_move_with_the_pixels():
    """A picture that is its boxes: after mirroring and magnifying, the box of the pixels is the moved box."""
    rng = np.random.default_rng(0)
    count, size = 20, 64
    image, rows = torch.zeros(count, 3, size, size), torch.zeros(count, 1, 5)
    for index in range(count):
        x, y = sorted(rng.integers(16, 48, 2)), sorted(rng.integers(16, 48, 2))
        left, top, right, bottom = x[0], y[0], x[1] + 4, y[1] + 4
        image[index, :, top:bottom, left:right] = 1
        rows[index, 0] = torch.tensor([left, top, right, bottom, 1])
    batch = flip({"image": image, "detection": rows}, torch.arange(count) % 2 == 0)
    scale = torch.from_numpy(rng.uniform(1, 1.3, count).astype(np.float32))
    corner = torch.from_numpy(rng.uniform(0, 1, (count, 2)).astype(np.float32))
    moved = magnify(batch, scale, corner)
    for picture, (row,) in zip(moved["image"], moved["detection"], strict=True):
        below, across = (picture[0] > 0.5).nonzero().T
        seen = [across.min(), below.min(), across.max() + 1, below.max() + 1]
        np.testing.assert_allclose(row[:4], seen, atol=0.76)  # half a pixel of rounding, magnified


def test_a_folder_of_scenes_has_what_the_job_asks_for(tmp_path: Path):
    root = tmp_path / "scenes"
    splits = scenes(root, train=6, val=2, size=32, seed=5, tasks=TASKS, calibration=0.2)
    expected = render(6, 32, seed=5)
    whole = MultiTaskFolder(root, "train", tasks=TASKS).batch(range(6))
    assert set(whole) == {"image", *TASKS}
    np.testing.assert_array_equal(whole["detection"], expected["detection"])
    np.testing.assert_array_equal(whole["floor"], expected["floor"])
    assert whole["floor"].dtype == torch.int64
    in_memory = scenes(train=6, val=2, size=32, seed=5, tasks=TASKS, calibration=0.2)
    for key, value in in_memory.train.batch(range(5)).items():
        torch.testing.assert_close(splits.train.batch(range(5))[key], value)
    # A folder with boxes serves a job without, and one without does not serve a job with.
    assert set(scenes(root, train=6, val=2, size=32, seed=5).train[0]) == {
        "image",
        "semseg",
        "depth",
        "normals",
        "edge",
        "sal",
    }
    plain = tmp_path / "plain"
    write_scenes(plain, train=2, val=1, size=32)
    assert "floor" in scenes(plain, train=2, val=1, size=32, tasks=["floor"], calibration=0.5).train[0]
    with pytest.raises(UserError, match="holds boxes = None, the job asks for True; delete the folder"):
        scenes(plain, train=2, val=1, size=32, tasks=["detection"])


def test_what_a_folder_lacks_is_said(tmp_path: Path):
    root = tmp_path / "scenes"
    write_scenes(root, train=2, val=1, size=32, boxes=True)
    with pytest.raises(UserError, match="unknown task 'detections'; did you mean 'detection'"):
        scenes(tasks=["detections"])
    path = next((root / "detection").glob("train*.npy"))
    np.save(path, np.zeros((3, 5), np.float32))
    with pytest.raises(UserError, match=r"float32 \(3, 5\); boxes are float32 \(12, 5\), rows x1, y1, x2, y2, class"):
        MultiTaskFolder(root, "train", tasks=["detection"])[0]
    (root / "meta.json").unlink()
    with pytest.raises(UserError, match=r"only generated scenes have 'detection': use mtlc.zoo:scenes"):
        MultiTaskFolder(root, "train", tasks=["detection"])


def test_boxes_are_scaled_with_the_picture(tmp_path: Path):
    rows = np.array([[2, 4, 8, 16, 1], NOTHING], np.float32)
    np.testing.assert_array_equal(resize_label("detection", rows, (16, 64), (32, 32)), [[4, 2, 16, 8, 1], NOTHING])
    write_scenes(tmp_path / "scenes", train=2, val=1, size=32, boxes=True)
    small = MultiTaskFolder(tmp_path / "scenes", "train", size=(16, 32), tasks=["detection"])[0]
    large = MultiTaskFolder(tmp_path / "scenes", "train", tasks=["detection"])[0]
    assert small["image"].shape == (3, 16, 32)
    torch.testing.assert_close(small["detection"], large["detection"] * torch.tensor([1, 0.5, 1, 0.5, 1]))
