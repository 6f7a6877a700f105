"""Streaming from files: sizes, windows, mirror images and workers change what they should, and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from testkit.dense_samples import write_cityscapes, write_pascal

from mtlc.compress.training.step_loader import StepLoader, StepReader
from mtlc.errors import UserError
from mtlc.evaluation.splits import fetch
from mtlc.zoo import checked_files, cityscapes, pascal_context
from mtlc.zoo.checked_files import load_mat
from mtlc.zoo.dense import cropped, magnify, to_tensors
from mtlc.zoo.dense_folder import fitted, how_to_read
from mtlc.zoo.nyud import nyud, write_scenes


def test_padding_is_no_label_in_any_task():
    shape = (2, 3)
    labels = {
        "semseg": np.zeros(shape, np.uint8),
        "human_parts": np.zeros(shape, np.uint8),
        "depth": np.ones(shape, np.float32),
        "disparity": np.ones(shape, np.float32),
        "normals": np.ones((*shape, 3), np.float32),
        "edge": np.ones(shape, np.uint8),
        "sal": np.ones(shape, np.uint8),
        "detection": np.ones((4, 5), np.float32),
    }
    found = fitted(np.zeros((*shape, 3), np.uint8), labels, (4, 4), pad=True)
    assert [int(value) for value in found["image"][3, 3]] == [124, 116, 104]
    for task in ("semseg", "human_parts", "edge", "sal"):
        assert (found[task][2:] == 255).all()
        assert (found[task][:, 3:] == 255).all()
        assert (found[task][:2, :3] == labels[task]).all()
    assert (found["depth"][2:] == 0).all()
    assert np.isnan(found["disparity"][:, 3]).all()
    assert (found["normals"][2:] == 0).all()
    assert found["detection"] is labels["detection"]
    # 8 × 4 is made smaller to 4 × 2: 2 pixels wide where there were 4, so disparities are half as long.
    tall = fitted(np.zeros((8, 4, 3), np.uint8), {"disparity": np.full((8, 4), 6, np.float32)}, (4, 4), pad=True)
    np.testing.assert_array_equal(tall["disparity"][:, :2], 3)
    assert np.isnan(tall["disparity"][:, 2:]).all()


def test_windows_are_the_same_for_picture_and_labels():
    values = np.arange(2 * 5 * 6).reshape(2, 5, 6).astype(np.float32)
    batch = to_tensors({"image": np.zeros((2, 5, 6, 3), np.uint8), "depth": values})
    batch["detection"] = torch.tensor([[[1.0, 1, 3, 3, 2], [0, 0, 1, 1, 4]], [[0, 0, 6, 5, 1], [0, 0, 0, 0, -1]]])
    found = cropped(batch, (3, 2), torch.tensor([[0.0, 0.0], [0.999, 0.999]]))
    np.testing.assert_array_equal(found["depth"][0, 0], values[0, :3, :2])
    np.testing.assert_array_equal(found["depth"][1, 0], values[1, 2:, 4:])
    assert tuple(found["image"].shape) == (2, 3, 3, 2)
    # Of the first a half is left in the window of 2 × 3; of the last a fifth, which is too little.
    assert found["detection"][0].tolist() == [[1, 1, 2, 3, 2], [0, 0, 1, 1, 4]]
    assert found["detection"][1].tolist() == [[0, 0, 0, 0, -1]] * 2
    with pytest.raises(UserError, match=r"crop = \[6, 2\]: the pictures have only 5 × 6 pixels"):
        cropped(batch, (6, 2), torch.zeros(2, 2))


def test_disparities_grow_when_pictures_are_magnified():
    batch = {"image": torch.zeros(1, 3, 4, 4), "disparity": torch.full((1, 1, 4, 4), 3.0)}
    assert (magnify(batch, torch.tensor([2.0]), torch.zeros(1, 2))["disparity"] == 6).all()


def test_training_sees_windows_and_validation_whole_pictures(tmp_path: Path):
    splits = cityscapes(write_cityscapes(tmp_path / "city"), crop=[2, 3], zoom=1.5)
    batch = splits.train.batch([0])
    seen = splits.train.augment(batch, torch.Generator().manual_seed(0))
    assert tuple(seen["image"].shape) == (1, 3, 2, 3)
    assert tuple(seen["semseg"].shape) == (1, 2, 3)
    again = splits.train.augment(batch, torch.Generator().manual_seed(0))
    assert all(torch.equal(seen[key], again[key]) for key in seen)
    assert splits.validation.crop is None
    assert splits.validation.zoom == 1


def test_mirror_images_turn_normals(tmp_path: Path):
    data = pascal_context(write_pascal(tmp_path / "p"), tasks=["normals"], normals_where="everywhere").train
    batch = data.batch([0, 1])
    for seed in range(20):
        seen = data.augment(batch, torch.Generator().manual_seed(seed))
        if seen["normals"][0, 0].min() < 0:
            break
    assert (batch["normals"][0, 0, :6, :8] > 0.99).all()
    assert (seen["normals"][0, 0, :6, -8:] < -0.99).all()  # at the right, and pointing left
    assert (seen["normals"][0, 1, :6, -8:] > 0).all()  # y as it was


def test_workers_change_nothing(tmp_path: Path):
    write_scenes(tmp_path / "s", train=12, val=2, size=16)
    plain, pooled = (nyud(tmp_path / "s", cache_bytes=0, workers=n) for n in (0, 2))
    for one, other in ((plain.train, pooled.train), (plain.calibration, pooled.calibration)):
        places = list(range(len(one)))
        for key, value in one.batch(places).items():
            assert torch.equal(value, other.batch(places)[key])
    assert plain.identity == pooled.identity
    # Also within the workers of a training, which may have no children of their own.
    reader = StepReader(pooled.train, 0, 4, augment=True)
    with StepLoader(reader, range(2), workers=1) as loader:
        batch = loader.read(0)
    expected = StepReader(plain.train, 0, 4, augment=True).read(0)
    assert all(torch.equal(value, batch[key]) for key, value in expected.items())


def test_nothing_is_kept_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_scenes(tmp_path / "s", train=6, val=2, size=16)
    data = nyud(tmp_path / "s", cache_bytes=0).train
    reads = []
    read = type(data.whole).read
    monkeypatch.setattr(type(data.whole), "read", lambda self, index: reads.append(index) or read(self, index))
    data.batch([0, 1])
    data.batch([0, 1])
    assert len(reads) == 4


def test_a_worker_does_not_fill_a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_scenes(tmp_path / "s", train=6, val=2, size=16)
    data = nyud(tmp_path / "s").train
    monkeypatch.setattr("mtlc.zoo.dense.get_worker_info", lambda: object())
    data.batch([0])
    assert data.whole._arrays is None
    monkeypatch.setattr("mtlc.zoo.dense.get_worker_info", lambda: None)
    data.batch([0])
    assert data.whole._arrays is not None


def test_errors_of_workers_name_file_and_task(tmp_path: Path):
    root = write_pascal(tmp_path / "p", tuple(f"2008_{number:06d}" for number in range(8)))
    (root / "sal_distill" / "2008_000005.png").write_bytes(b"nothing")
    data = pascal_context(root, tasks=["sal"], workers=2).train.whole
    with pytest.raises(UserError, match=r"^\[data\] sal: .*2008_000005\.png: not a picture") as error:
        fetch(data, range(8))
    assert "\n" not in str(error.value)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_worker_that_ends_names_its_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = write_pascal(tmp_path / "p", tuple(f"2008_{number:06d}" for number in range(8)))
    data = pascal_context(root, tasks=["sal"], workers=2).train.whole
    read = type(data).read

    def dies(self: object, index: int) -> object:
        if index == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index)

    monkeypatch.setattr(type(data), "read", dies)
    with pytest.raises(UserError, match="a worker that reads samples ended while it read sample 6; if memory ran out"):
        fetch(data, range(8))
    monkeypatch.setattr(type(data), "read", read)
    assert len(fetch(data, range(8))["image"]) == 8  # by a pool of new workers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": [64]}, r"size = \[64\]: give a height and a width"),
        ({"size": "big"}, "size = big"),
        ({"size": [0, 4]}, "give a height and a width"),
        ({"crop": [4.5, 4]}, "crop = "),
        ({"pad": True}, "pad = True: true or false, and with size"),
        ({"zoom": 0.5}, "zoom = 0.5: give a factor from 1"),
        ({"workers": -1}, "workers = -1: give a whole number from 0 to 256"),
        ({"cache_bytes": 1.5}, "cache_bytes = 1.5"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        how_to_read(**settings)


@pytest.mark.parametrize("seed", range(8))
def test_damaged_files_are_an_error_of_one_line_or_nothing(tmp_path: Path, seed: int):
    """Bytes changed, cut off and added at random, in every file of a sample."""
    root, rng = write_pascal(tmp_path / "p", ("2008_000001", "2008_000002")), np.random.default_rng(seed)
    for path in sorted(root.rglob("2008_000001.*")):
        content = bytearray(path.read_bytes())
        for place in rng.integers(0, len(content), 1 + seed):
            content[place] = rng.integers(256)
        cut = int(rng.integers(len(content))) if seed % 3 == 0 else len(content)
        path.write_bytes(content[:cut] + bytes(seed))
    data = pascal_context(root, size=None).validation
    for task in data.tasks:
        alone = pascal_context(root, tasks=[task], size=None).validation
        try:
            alone[0]
        except UserError as error:
            told = str(error)
            lines, names = told.count("\n"), "2008_000001" in told
        else:
            lines, names = 0, True
        assert lines == 0
        assert names


def test_an_array_that_would_not_fit_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    savemat(tmp_path / "a.mat", {"LabelMap": np.zeros((300, 400), np.uint16)}, do_compression=True)
    assert load_mat(tmp_path / "a.mat", "LabelMap").shape == (300, 400)
    monkeypatch.setattr(checked_files, "_MOST_NUMBERS", 100_000)
    with pytest.raises(UserError, match=r"a\.mat: 'LabelMap' is \(300, 400\); at most 100000 numbers are read"):
        load_mat(tmp_path / "a.mat", "LabelMap")
