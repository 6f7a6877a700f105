"""The layout on disk: what is written comes back, each encoding is told from the others, and doubt is an error."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from scipy.io import savemat

from mtlc.errors import UserError
from mtlc.zoo.dense import MEAN, STD, DenseArrays, flip, magnify, to_tensors
from mtlc.zoo.label_files import resize_label
from mtlc.zoo.nyud import FOLDERS, NYU40, VALIDATION_START, MultiTaskFolder, nyud, scenes, write_scenes
from mtlc.zoo.scenes import CLASSES, render

TASKS = ("semseg", "depth", "normals", "edge", "sal")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, train=6, val=2, size=32, seed=5)
    return folder


def made_by_hand(folder: Path, encoding: str) -> dict[str, np.ndarray]:
    """Two images of NYUD-v2 as one of the three encodings would hold them; returns the labels that they stand for."""
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 41, (2, 6, 8)).astype(np.uint8)  # 0 is unlabelled, 1–40 the classes
    depth = rng.uniform(0.5, 9, (2, 6, 8)).astype(np.float32)
    depth[:, 0, 0] = 0
    edge = (rng.random((2, 6, 8)) > 0.8).astype(np.uint8)
    normals = np.zeros((2, 6, 8, 3), np.float32)
    normals[:, :, :4] = (0, 0, 1)
    normals[:, :, 4:, 1] = 1
    normals[:, 0, 0] = 0
    for name in ("images", "segmentation", "depth", "normals", "edge", "gt_sets"):
        (folder / name).mkdir(parents=True)
    for split in ("train", "val"):
        (folder / "gt_sets" / f"{split}.txt").write_text("0001\n0002\n")
    for index, name in enumerate(("0001", "0002")):
        suffix = ".png" if encoding == "ATRC" else ".jpg"
        Image.fromarray(np.full((6, 8, 3), 100, np.uint8)).save(folder / "images" / (name + suffix), quality=95)
        eight_bit = np.round((normals[index] + 1) * 127.5).astype(np.uint8)
        if encoding == "astmt":
            savemat(folder / "segmentation" / f"{name}.mat", {"segmentation": raw[index]})
            savemat(folder / "depth" / f"{name}.mat", {"depth": depth[index]})
            Image.fromarray(eight_bit).save(folder / "normals" / f"{name}.jpg", quality=100, subsampling=0)
        else:
            Image.fromarray(raw[index]).save(folder / "segmentation" / f"{name}.png")
            np.save(folder / "depth" / f"{name}.npy", depth[index])
            if encoding == "ATRC":
                Image.fromarray(eight_bit).save(folder / "normals" / f"{name}.png")
            else:
                np.save(folder / "normals" / f"{name}.npy", normals[index])
        if encoding == "MTL-survey":
            np.save(folder / "edge" / f"{name}.npy", edge[index].astype(np.float32))
        else:
            Image.fromarray(edge[index] * np.uint8(255)).save(folder / "edge" / f"{name}.png")
    semseg = raw.astype(int) if encoding == "astmt" else np.where(raw == 0, 255, raw.astype(int) - 1)
    return {"semseg": semseg, "depth": depth[:, None], "normals": normals.transpose(0, 3, 1, 2), "edge": edge[:, None]}


# --- Generated scenes -----------------------------------------------------------------------------------------------


def test_what_is_written_comes_back(root: Path):
    folder = MultiTaskFolder(root, "train")
    expected = to_tensors(render(6, 32, seed=5))
    got = folder.batch(range(6))
    assert set(got) == {"image", *TASKS}
    for key in got:
        torch.testing.assert_close(got[key], expected[key], rtol=0, atol=0)
    validation = MultiTaskFolder(root, "val")[1]
    torch.testing.assert_close(
        validation["depth"][0], torch.from_numpy(render(1, 32, 5, VALIDATION_START + 1)["depth"][0])
    )
    assert folder.classes == CLASSES
    assert json.loads((root / "meta.json").read_text())["size"] == 32
    assert not list(root.parent.glob(".*"))  # no temporary folder is left


def test_sample_is_normalised_and_typed(root: Path):
    folder = MultiTaskFolder(root, "train")
    sample = folder[2]
    pixels = render(1, 32, seed=5, start=2)["image"][0].astype(np.float64)
    expected = (pixels / 255 - MEAN) / STD
    np.testing.assert_allclose(sample["image"], expected.transpose(2, 0, 1), atol=1e-5)
    assert {key: (tuple(value.shape), value.dtype) for key, value in sample.items()} == {
        "image": ((3, 32, 32), torch.float32),
        "semseg": ((32, 32), torch.int64),
        "depth": ((1, 32, 32), torch.float32),
        "normals": ((3, 32, 32), torch.float32),
        "edge": ((1, 32, 32), torch.float32),
        "sal": ((1, 32, 32), torch.float32),
    }
    assert folder.preprocessing == {
        "scale": 1 / 255,
        "mean": list(MEAN),
        "std": list(STD),
        "color": "RGB",
        "layout": "NCHW",
    }
    with pytest.raises(IndexError):
        folder[6]


def test_cache_changes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch):
    cached, plain = MultiTaskFolder(root, "train"), MultiTaskFolder(root, "train", cache_bytes=1000)
    for key, value in plain.batch([4, 0]).items():
        assert torch.equal(value, cached.batch([4, 0])[key])
    monkeypatch.setattr(MultiTaskFolder, "read", lambda self, index: pytest.fail("read again"))
    cached.batch([1, 2])


def test_tasks_are_chosen(root: Path):
    assert set(MultiTaskFolder(root, "train", tasks=["depth"])[0]) == {"image", "depth"}
    with pytest.raises(UserError, match="unknown task 'dept'; did you mean 'depth'"):
        MultiTaskFolder(root, "train", tasks=["dept"])


def test_calibration_is_held_out_of_training():
    splits = scenes(train=10, val=2, size=16, calibration=0.3)
    held, rest = splits.calibration.indices, splits.train.indices
    assert (len(held), len(rest), len(splits.validation)) == (3, 7, 2)
    assert sorted(held + rest) == list(range(10))
    again = scenes(train=10, val=2, size=16, calibration=0.3)
    assert again.calibration.indices == held
    assert again.identity == splits.identity
    assert scenes(train=10, val=2, size=16, calibration=0.3, seed=1).identity != splits.identity
    assert splits.preprocessing == splits.validation.preprocessing
    assert torch.equal(splits.calibration[1]["depth"], splits.train.whole[held[1]]["depth"])
    assert torch.equal(splits.train.batch([2, 0])["image"][1], splits.train[0]["image"])
    with pytest.raises(UserError, match="share between 0 and 1"):
        scenes(train=10, val=2, size=16, calibration=1.0)


def test_scenes_are_made_once_and_read_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "new"
    first = scenes(target, train=4, val=1, size=16, seed=2)
    in_memory = scenes(None, train=4, val=1, size=16, seed=2)
    for key, value in in_memory.train.batch(range(3)).items():
        assert torch.equal(first.train.batch(range(3))[key], value)
    monkeypatch.setitem(write_scenes.__globals__, "render", lambda *_: pytest.fail("rendered again"))
    assert scenes(target, train=4, val=1, size=16, seed=2).identity == first.identity
    with pytest.raises(UserError, match=r"holds seed = 2, the job asks for 3; delete the folder"):
        scenes(target, train=4, val=1, size=16, seed=3)
    assert len(nyud(target).train) == 3  # as it is


def test_half_written_scenes_never_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = iter(range(3))

    def dies(*args: int) -> dict[str, np.ndarray]:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return render(*args)

    monkeypatch.setitem(write_scenes.__globals__, "render", dies)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "new", train=4, val=1, size=16)
    assert list(tmp_path.iterdir()) == []


def test_identity_follows_the_files(root: Path):
    folder = MultiTaskFolder(root, "train")
    before = folder.identity
    assert MultiTaskFolder(root, "train").identity == before
    assert MultiTaskFolder(root, "train", tasks=["depth"]).identity != before
    assert MultiTaskFolder(root, "train", size=(16, 16)).identity != before
    path = root / "edge" / "train_000003.npy"
    content = path.read_bytes()
    np.save(path, np.zeros((32, 32), np.float32))
    assert folder.identity != before
    path.write_bytes(content)


# --- NYUD-v2 itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["MTL-survey", "astmt", "ATRC"])
def test_each_encoding_is_recognised_and_decoded(tmp_path: Path, encoding: str):
    expected = made_by_hand(tmp_path / "nyud", encoding)
    folder = MultiTaskFolder(tmp_path / "nyud", "val")
    assert folder.encoding.name == encoding
    assert folder.tasks == ("semseg", "depth", "normals", "edge")
    assert folder.classes == (("unlabelled", *NYU40) if encoding == "astmt" else NYU40)
    got = folder.batch([0, 1])
    for task in ("semseg", "depth", "edge"):
        np.testing.assert_array_equal(got[task].numpy(), expected[task])
    tolerance = {"MTL-survey": 1e-7, "ATRC": 0.006, "astmt": 0.15}[encoding]  # exact, 8 bits, jpg
    known = np.linalg.norm(expected["normals"], axis=1, keepdims=True) > 0
    apart = np.abs(got["normals"].numpy() - expected["normals"]) * known
    assert np.median(apart) <= tolerance
    assert apart.max() <= (0.5 if encoding == "astmt" else tolerance)
    if encoding != "astmt":  # a jpg blurs the grey of one pixel
        assert (got["normals"].numpy()[:, :, 0, 0] == 0).all()
    splits = nyud(tmp_path / "nyud", size=[3, 4], calibration=0.5)
    assert tuple(splits.train[0]["normals"].shape) == (3, 3, 4)


def test_doubt_is_an_error(tmp_path: Path):
    folder = tmp_path / "nyud"
    made_by_hand(folder, "ATRC")
    (folder / "edge" / "0001.npy").write_bytes((folder / "depth" / "0001.npy").read_bytes())
    with pytest.raises(UserError, match=r"edge: holds both \.npy and \.png for '0001'"):
        MultiTaskFolder(folder, "val")
    (folder / "edge" / "0001.png").unlink()  # edges in .npy, but normals in .png: no known encoding
    with pytest.raises(UserError, match="fit no known encoding"):
        MultiTaskFolder(folder, "val")
    assert MultiTaskFolder(folder, "val", tasks=["semseg", "depth"]).encoding.shift  # what is asked for is beyond doubt


@pytest.mark.parametrize(
    ("task", "array", "message"),
    [
        ("semseg", np.full((6, 8), 254, np.uint8), "class 254, but MTL-survey counts 0 to 40"),
        ("depth", np.full((6, 8), 4500, np.uint16), "not metres"),
        ("depth", np.zeros((6, 8, 2), np.float32), r"shape \(6, 8, 2\)"),
        ("depth", np.zeros((8, 6), np.float32), r"\(8, 6\) pixels, but its image has \(6, 8\)"),
        ("normals", np.full((6, 8, 3), 128, np.uint8), "not unit vectors"),
        ("normals", np.zeros((6, 8), np.float32), "normals are"),
        ("edge", np.full((6, 8), 255, np.uint8), "edges in a .npy are 0 or 1"),
    ],
)
def test_values_of_another_encoding_are_refused(tmp_path: Path, task: str, array: np.ndarray, message: str):
    folder = tmp_path / "nyud"
    made_by_hand(folder, "MTL-survey")
    path = folder / FOLDERS[task] / "0001"
    if task == "semseg":
        Image.fromarray(array).save(path.with_suffix(".png"))
    else:
        np.save(path.with_suffix(".npy"), array)
    with pytest.raises(UserError, match=message):
        MultiTaskFolder(folder, "val", tasks=[task])[0]


def test_masks_of_16_bits_are_not_cut_off(tmp_path: Path):
    """300 of 65535 is black; cut off at 255 it would be white."""
    made_by_hand(tmp_path / "nyud", "ATRC")
    mask = np.full((6, 8), 300, np.uint16)
    mask[2, 3] = 65535
    Image.fromarray(mask).save(tmp_path / "nyud" / "edge" / "0001.png")
    edge = MultiTaskFolder(tmp_path / "nyud", "val", tasks=["edge"])[0]["edge"]
    assert edge.sum() == 1
    assert edge[0, 2, 3] == 1


def test_class_numbers_are_whole(tmp_path: Path):
    made_by_hand(tmp_path / "nyud", "astmt")
    savemat(tmp_path / "nyud" / "segmentation" / "0001.mat", {"segmentation": np.full((6, 8), 2.0)})
    assert int(MultiTaskFolder(tmp_path / "nyud", "val", tasks=["semseg"])[0]["semseg"].max()) == 2
    savemat(tmp_path / "nyud" / "segmentation" / "0001.mat", {"segmentation": np.full((6, 8), 2.5)})
    with pytest.raises(UserError, match=r"0001\.mat: holds fractions"):
        MultiTaskFolder(tmp_path / "nyud", "val", tasks=["semseg"])[0]


def test_pictures_that_exif_turns_do_not_fit_their_labels(tmp_path: Path):
    made_by_hand(tmp_path / "nyud", "ATRC")
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "nyud" / "images" / "0001.png", exif=exif)
    with pytest.raises(UserError, match=r"0001.png: EXIF turns it \(orientation 3\)"):
        MultiTaskFolder(tmp_path / "nyud", "val")[0]


def test_missing_and_damaged_files_are_named(tmp_path: Path):
    with pytest.raises(UserError, match="nowhere: no such folder; put NYUD-v2"):
        nyud(tmp_path / "nowhere")
    folder = tmp_path / "nyud"
    made_by_hand(folder, "MTL-survey")
    with pytest.raises(UserError, match=r"saliency: no such folder"):
        MultiTaskFolder(folder, "val", tasks=["sal"])
    (folder / "depth" / "0002.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match=r"0002\.npy: not a numpy array"):
        MultiTaskFolder(folder, "val")[1]
    (folder / "depth" / "0002.npy").unlink()
    with pytest.raises(UserError, match=r"0002\.npy: missing, though its split lists it"):
        _ = MultiTaskFolder(folder, "val").identity
    (folder / "images" / "0001.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"0001\.jpg: not a picture"):
        MultiTaskFolder(folder, "val")[0]
    (folder / "gt_sets" / "val.txt").write_text("../0001\n")
    with pytest.raises(UserError, match="not a plain file name"):
        MultiTaskFolder(folder, "val")
    (folder / "gt_sets" / "val.txt").unlink()
    with pytest.raises(UserError, match=r"val\.txt: no such file"):
        MultiTaskFolder(folder, "val")


# --- Resizing and augmentation --------------------------------------------------------------------------------------


def test_labels_resize_to_the_nearest_pixel_and_edges_keep_lines():
    label = np.arange(16, dtype=np.uint8).reshape(4, 4)
    np.testing.assert_array_equal(resize_label("semseg", label, (2, 2)), [[5, 7], [13, 15]])
    np.testing.assert_array_equal(resize_label("semseg", label, (8, 4))[::2], label)
    line = np.zeros((4, 4), np.uint8)
    line[:, 0] = 1
    np.testing.assert_array_equal(resize_label("edge", line, (2, 2)), [[1, 0], [1, 0]])


@st.composite
def batches(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    count, height, width = draw(st.integers(1, 3)), draw(st.integers(2, 6)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    arrays = {
        "image": rng.integers(0, 256, (count, height, width, 3), np.uint8),
        "semseg": draw(npst.arrays(np.uint8, (count, height, width), elements=st.sampled_from([0, 1, 5, 255]))),
        "depth": rng.uniform(0, 5, (count, height, width)).astype(np.float32),
        "normals": rng.normal(size=(count, height, width, 3)).astype(np.float32),
        "edge": rng.integers(0, 2, (count, height, width), np.uint8),
    }
    return to_tensors(arrays)


@settings(max_examples=25, deadline=None)
@given(batches(), st.data())
def test_flipping_twice_changes_nothing(batch: dict[str, torch.Tensor], data: st.DataObject):
    count = len(batch["image"])
    chosen = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    once = flip(batch, chosen)
    for index in range(count):
        flipped = batch["normals"][index].flip(-1) * torch.tensor([-1.0, 1, 1]).view(3, 1, 1)
        assert torch.equal(once["normals"][index], flipped if chosen[index] else batch["normals"][index])
        expected = batch["semseg"][index].flip(-1) if chosen[index] else batch["semseg"][index]
        assert torch.equal(once["semseg"][index], expected)
    for key, value in flip(once, chosen).items():
        assert torch.equal(value, batch[key])


@settings(max_examples=25, deadline=None)
@given(batches())
def test_magnifying_by_one_changes_nothing(batch: dict[str, torch.Tensor]):
    count = len(batch["image"])
    for key, value in magnify(batch, torch.ones(count), torch.full((count, 2), 0.3)).items():
        torch.testing.assert_close(value, batch[key], rtol=1e-5, atol=1e-5)


def test_magnifying_takes_a_window_and_brings_it_nearer():
    depth = np.arange(1, 17, dtype=np.float32).reshape(1, 4, 4)
    batch = to_tensors({"image": np.zeros((1, 4, 4, 3), np.uint8), "depth": depth})
    right_bottom = magnify(batch, torch.tensor([2.0]), torch.tensor([[1.0, 1.0]]))
    quarter = np.array([[11, 12], [15, 16]]).repeat(2, 0).repeat(2, 1) / 2
    np.testing.assert_allclose(right_bottom["depth"][0, 0], quarter)


def test_augmentation_follows_its_generator():
    data = DenseArrays(render(12, 16), CLASSES, "test", zoom=1.4)
    batch = data.batch(range(12))
    first = data.augment(batch, torch.Generator().manual_seed(1))
    again = data.augment(batch, torch.Generator().manual_seed(1))
    other = data.augment(batch, torch.Generator().manual_seed(2))
    assert all(torch.equal(first[key], again[key]) for key in batch)
    assert not torch.equal(first["image"], other["image"])
    assert {key: value.shape for key, value in first.items()} == {key: value.shape for key, value in batch.items()}
    torch.testing.assert_close(first["normals"].norm(dim=1), torch.ones(12, 16, 16))


def test_several_that_need_the_same_scenes_read_the_same(tmp_path):
    """Each made its own, and the last to be moved to its place had other times, so another identity, than the rest."""
    with ThreadPoolExecutor(4) as pool:
        made = [pool.submit(scenes, tmp_path / "data", train=6, val=1, size=16, seed=2) for _ in range(4)]
        assert len({one.result().identity for one in made}) == 1
    assert os.listdir(tmp_path) == ["data"]
