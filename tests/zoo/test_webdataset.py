"""Shards of WebDataset: what members become, each sample once, and what is damaged or hostile in one line."""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from testkit.tar_samples import SIZE, add, npy, png, sample, write_shards, write_tar

from mtlc.compress.training.micro_batches import BatchSplit
from mtlc.compress.training.step_loader import StepLoader, StepReader
from mtlc.errors import UserError
from mtlc.evaluation.sample_forms import Names
from mtlc.evaluation.splits import batches, fetch, load_splits
from mtlc.zoo import webdataset as made
from mtlc.zoo.tar_shards import open_shard
from mtlc.zoo.webdataset_samples import KINDS

wds = pytest.importorskip("webdataset")

TASKS: dict[str, Any] = {
    "lanes": {"member": "lanes.png", "as": "classes"},
    "depth": {"member": "depth.png", "scale": 0.001},
    "far": {"member": "far.npy", "as": "depth"},
    "normals": "normals.npy",
    "sal": "mask.png",
    "detection": {"member": "boxes.npy", "most": 3},
    "weather": "cls",
    "wheel": {"member": "wheel.json", "as": "numbers"},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_shards(tmp_path, shards=3, each=4)
    return write_shards(tmp_path, shards=1, each=2, name="val")


def splits(root: Path, **settings: Any) -> Any:
    given = {"train": "train-{000..002}.tar", "validation": "val-*.tar", "tasks": TASKS, "image": "png"} | settings
    return made(root, **given)


def numbers_of(batch: dict[str, torch.Tensor]) -> list[int]:
    """Which samples a batch holds, by what their label says."""
    return [int(value) for value in (batch["wheel"][:, 0] * 4).round()]


def test_every_member_becomes_its_label(root: Path):
    data = splits(root)
    assert (len(data.train), len(data.calibration), len(data.validation)) == (11, 1, 2)
    whole = data.train.whole
    batch = whole.batch([9, 2])
    assert {key: (tuple(value.shape), value.dtype) for key, value in batch.items()} == {
        "image": ((2, 3, *SIZE), torch.float32),
        "lanes": ((2, *SIZE), torch.int64),
        "depth": ((2, 1, *SIZE), torch.float32),
        "far": ((2, 1, *SIZE), torch.float32),
        "normals": ((2, 3, *SIZE), torch.float32),
        "sal": ((2, 1, *SIZE), torch.float32),
        "detection": ((2, 3, 5), torch.float32),
        "weather": ((2,), torch.int64),
        "wheel": ((2, 2), torch.float32),
    }
    assert batch["lanes"][0].tolist() == [[300, *[4] * 5], *[[4] * 6] * 3]
    assert torch.allclose(batch["depth"][:, 0, 0, 0], torch.tensor([0.9, 0.2]))  # 900 and 200 steps of a millimetre
    assert batch["far"][:, 0, 1, 1].tolist() == [4.5, 1.0]
    assert (batch["normals"][:, 0] == 1).all()
    assert batch["sal"][1, 0, 3].tolist() == [1, 1, 0, 0, 0, 0]
    assert batch["detection"][0, :, 4].tolist() == [-1, -1, -1]  # 9 % 3 boxes
    assert batch["detection"][1, :, 4].tolist() == [1, 1, -1]
    assert batch["weather"].tolist() == [2, 2]  # 9 and 2 of 7
    assert batch["wheel"].tolist() == [[2.25, -1], [0.5, -1]]
    torch.testing.assert_close(batch["image"][0, 0, 0, 0], torch.tensor((9 / 255 - 0.485) / 0.229))
    assert data.train.whole.where(9) == (root / "train-002.tar", "000009")
    assert set(KINDS.values()) == {"semseg", "sal", "edge", "depth", "normals", "detection", "class", "numbers"}


def test_samples_are_those_that_the_library_streams(root: Path):
    streamed = wds.WebDataset(str(root / "train-{000..002}.tar"), shardshuffle=False)
    found = [(one["__key__"], bytes(one["cls"])) for one in streamed]
    data = splits(root).train.whole
    assert [key for key, _ in found] == [data.where(index)[1] for index in range(len(data))]
    assert [int(content) for _, content in found] == [int(data[index]["weather"]) for index in range(len(data))]


def test_what_its_own_writer_writes_is_read(tmp_path: Path):
    with wds.ShardWriter(str(tmp_path / "a-%03d.tar"), maxcount=3, verbose=0) as writer:
        for number in range(6):
            picture = np.full((*SIZE, 3), number, np.uint8)
            writer.write({"__key__": f"x{number}", "png": picture, "cls": number, "far.npy": np.ones(SIZE) * number})
    settings = {"train": "a-{000..001}.tar", "validation": "a-001.tar", "image": "png"}
    data = splits(tmp_path, **settings, tasks={"weather": "cls", "far": TASKS["far"]}).train.whole
    assert [int(data[index]["weather"]) for index in range(6)] == list(range(6))
    assert float(data[5]["far"][0, 0, 0]) == 5


# --- Each sample once ---------------------------------------------------------------------------------------------


def test_an_epoch_has_each_sample_once_over_ranks_and_workers(root: Path):
    """Two processes with two workers each, twice the order of one."""
    data = splits(root, calibration="val-000.tar").train
    assert len(data) == 12
    read: list[list[list[int]]] = []
    for rank in range(2):
        split = BatchSplit(4, (), None, 0, rank, 2)
        reader = StepReader(data, seed=3, batch=4, augment=False, share=split.share)
        with StepLoader(reader, range(6), workers=2) as loader:
            read.append([numbers_of(loader.read(step)) for step in range(6)])
    alone = StepReader(data, seed=3, batch=4, augment=False)
    for epoch in (0, 1):
        steps = range(epoch * 3, epoch * 3 + 3)
        together = Counter(number for rank in read for step in steps for number in rank[step])
        assert together == Counter(range(12))
        for step in steps:
            assert sorted(read[0][step] + read[1][step]) == sorted(numbers_of(alone.read(step)))
    assert [numbers_of(alone.read(step)) for step in range(3)] != [numbers_of(alone.read(step)) for step in range(3, 6)]


def test_a_training_that_was_killed_reads_on_in_the_same_order(root: Path):
    data = splits(root).train
    through = StepReader(data, seed=1, batch=2, augment=True)
    before = [through.read(step) for step in range(7)]
    resumed = StepReader(splits(root).train, seed=1, batch=2, augment=True)  # from the files, in another process
    for step in (4, 5, 6):
        for key, value in resumed.read(step).items():
            assert torch.equal(value, before[step][key])


def test_workers_of_the_data_set_change_nothing(root: Path):
    one, pooled = splits(root).train, splits(root, workers=2).train
    for key, value in fetch(one, range(11)).items():
        assert torch.equal(value, fetch(pooled, range(11))[key])
    assert sum(len(batch["wheel"]) for batch in batches(pooled, 4)) == 11


def test_mirror_images_are_left_out_where_numbers_say_something(root: Path):
    data = splits(root)
    assert not data.train.whole.mirror
    batch = data.train.batch([0, 1, 2])
    assert all(torch.equal(value, batch[key]) for key, value in data.train.augment(batch, torch.Generator()).items())
    mirrored = splits(root, tasks={"sal": "mask.png", "weather": "cls"}, crop=[3, 4])
    assert mirrored.train.whole.mirror
    seen = mirrored.train.augment(mirrored.train.batch(range(8)), torch.Generator().manual_seed(1))
    assert tuple(seen["sal"].shape) == (8, 1, 3, 4)
    assert seen["weather"].shape == (8,)
    assert splits(root, mirror=True).train.whole.mirror


def test_samples_without_labels_and_pictures_of_many_sizes(tmp_path: Path):
    small = png(np.zeros((2, 3, 3), np.uint8))
    samples = {
        "a": {"png": sample(1)["png"], "cls": b"3", "mask.png": sample(1)["mask.png"]},
        "b": {"png": small},
    }
    write_tar(tmp_path / "t.tar", samples)
    settings = {"train": "t.tar", "validation": "t.tar", "tasks": {"weather": "cls", "sal": "mask.png"}, "image": "png"}
    with pytest.raises(UserError, match=r"t\.tar: sample 'b' has no member 'cls'; it has 'png'"):
        made(tmp_path, **settings)
    data = made(tmp_path, **settings, partial=True, size=[4, 6], pad=True).train.whole
    batch = data.batch([1, 0])
    assert batch["weather:labelled"].tolist() == [False, True]
    assert batch["weather"].tolist() == [0, 3]
    assert batch["sal:labelled"].tolist() == [False, True]
    assert set(data[1]) == {"image"}
    flipped = data.augment(batch, torch.Generator().manual_seed(0))
    assert flipped["sal:labelled"].tolist() == [False, True]


# --- Damaged and hostile --------------------------------------------------------------------------------------------


def test_a_shard_that_was_cut_off_is_named_with_its_last_sample(root: Path):
    path = root / "train-001.tar"
    content = path.read_bytes()
    whole = len(content.rstrip(b"\0")) // 512 * 512 + 512  # to the end of the last member
    for end in (*range(0, whole, 3 * 512), whole - 1, 100):
        path.write_bytes(content[:end])
        with pytest.raises(UserError, match=r"truncated or damaged|has no member") as error:
            splits(root)
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)
    path.write_bytes(content[:whole])  # at the end of a member, but without the mark of the shard's
    with pytest.raises(UserError, match="truncated or damaged after sample '000007'"):
        splits(root)
    path.write_bytes(content[: whole + 1024])
    assert len(splits(root).train) == 11


def test_a_damaged_header_is_no_early_end(root: Path):
    path = root / "train-001.tar"
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        member = tar.getmembers()[13]
    content[member.offset : member.offset + 8] = b"damaged!"
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"train-001\.tar: truncated or damaged after sample '000005' \(the mark of its"
    ):
        splits(root)


def test_a_shard_that_shrinks_later_is_named(root: Path):
    data = splits(root).train.whole
    path = root / "train-002.tar"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"train-002\.tar: sample '000011': .*: truncated since it was opened"):
        data[11]
    path.unlink()
    with pytest.raises(UserError, match=r"train-002\.tar: sample '000008': cannot be read"):
        fetch(data, [8])


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        ("png", b"\x89PNG", "sample 'k': png: not a picture"),
        ("lanes.png", png(np.zeros((*SIZE, 3), np.uint8)), r"\[data\] lanes: .*sample 'k': lanes.png: .*coloured copy"),
        ("lanes.png", png(np.zeros((2, 2), np.uint8)), r"\(2, 2\) pixels, but its image has \(4, 6\)"),
        ("depth.png", png(np.zeros(SIZE, np.uint8)), "mode L; depths are stored in 16 bits"),
        ("far.npy", npy(np.full(SIZE, -1.0)), "are not metres from 0 to 100000"),
        ("far.npy", b"\x93NUMPY\x01\x00", "not a numpy array"),
        ("normals.npy", npy(np.full((*SIZE, 3), 7.0)), "not unit vectors"),
        ("boxes.npy", npy(np.zeros((4, 5))), r"4 boxes; \[data\] tasks.detection.most = 3"),
        ("boxes.npy", npy(np.zeros((4, 4))), r"boxes are \(M, 5\)"),
        ("cls", b"cat", "'cat' is no class number"),
        ("cls", b"-1", "class -1; numbers from 0"),
        ("cls", b"\xff\xfe", "is no text"),
        ("wheel.json", b"[" * 100_000, "no JSON that can be read"),
        ("wheel.json", b'{"a": 1}', "are no numbers"),
    ],
)
def test_members_that_hold_something_else(tmp_path: Path, suffix: str, content: bytes, message: str):
    write_tar(tmp_path / "t.tar", {"k": sample(1) | {suffix: content}})
    write_tar(tmp_path / "u.tar", {"k": sample(1), "l": sample(2)})
    data = splits(tmp_path, train="u.tar", validation="t.tar").validation
    with pytest.raises(UserError, match=message) as error:
        data[0]
    assert "t.tar: sample 'k'" in str(error.value)
    assert "\n" not in str(error.value)


def test_arrays_of_objects_are_not_opened(tmp_path: Path):
    class Runs:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    content = io.BytesIO()
    np.save(content, np.array([Runs()], object), allow_pickle=True)
    write_tar(tmp_path / "t.tar", {"k": sample(1) | {"far.npy": content.getvalue()}, "l": sample(2)})
    with pytest.raises(UserError, match="not a numpy array"):
        splits(tmp_path, train="t.tar", validation="t.tar").validation[0]
    assert not (tmp_path / "ran").exists()
    for member in ("x.pyd", "x.pkl", "x.pth"):
        with pytest.raises(UserError, match=rf"tasks.lanes = '{member}': such a member holds Python objects"):
            splits(tmp_path, train="t.tar", validation="t.tar", tasks={"lanes": {"member": member, "as": "classes"}})


def test_what_is_no_file_in_a_shard_is_passed_over(tmp_path: Path):
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, kind in (("../../etc.png", tarfile.SYMTYPE), ("dev.png", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        add(tar, "__meta__.json", b"{}")
        add(tar, "README", b"text")
        for suffix, content in sample(3).items():
            add(tar, f"../../../a.{suffix.upper()}", content)  # a key, and never a path
    shard = open_shard(tmp_path / "t.tar", ["png", "cls"], ["png", "cls"])
    assert (len(shard), shard.key(0)) == (1, "../../../a")
    (tmp_path / "u.tar").write_bytes((tmp_path / "t.tar").read_bytes())
    with tarfile.open(tmp_path / "u.tar", "a") as tar:
        for suffix in ("png", "png"):
            add(tar, f"twice.{suffix}", b"x")
    with pytest.raises(UserError, match=r"u\.tar: sample 'twice' has the member 'png' twice"):
        open_shard(tmp_path / "u.tar", ["png", "cls"], ["png"])


def test_a_header_that_leads_back_ends(tmp_path: Path):
    """A size below nothing made tarfile read the same member for ever."""
    path = write_tar(tmp_path / "t.tar", {"a": {"png": b"x" * 10}, "b": {"png": b"y"}})
    content = bytearray(path.read_bytes())
    header = content[1024:1536]
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"  # −1024, in base 256
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    content[1024:1536] = header
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"t\.tar: truncated or damaged after sample 'a'"):
        open_shard(path, ["png"], ["png"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": "pipe:touch ran"}, "train = 'pipe:touch ran': only files are read"),
        ({"train": "http://host/a.tar"}, "only files are read"),
        ({"train": "../a.tar"}, r"'../a.tar': leads out of root"),
        ({"train": "/etc/passwd"}, "leads out of root"),
        ({"train": "none-*.tar"}, r"train = 'none-\*.tar': no such file under"),
        ({"train": "train-{000..009}.tar"}, r"train: .*train-003\.tar: no such file"),
        ({"train": ["train-000.tar", "train-000.tar"]}, r"train-000\.tar is named twice"),
        ({"train": "${HOME}/a.tar"}, "missing environment variable"),
        ({"train": 3}, 'train = 3: give the shards, such as "train-{000..009}.tar"'),
        ({"image": "bin"}, "image = 'bin': a image is read of members that end in jpg"),
        ({"tasks": {}}, "tasks = {}: give a table"),
        ({"tasks": {"lanes": "lanes.png"}}, "tasks.lanes.as: say what the label is, one of classes, mask"),
        ({"tasks": {"lanes": {"member": "lanes.png", "as": "clases"}}}, "as = 'clases'; did you mean 'classes'"),
        ({"tasks": {"lanes": {"member": "lanes.png", "kind": "x"}}}, "unknown key 'kind'"),
        ({"tasks": {"image": "lanes.png"}}, "is the picture's name"),
        ({"tasks": {"depth": "depth.png"}}, "tasks.depth.scale = None: metres a step"),
        ({"tasks": {"depth": {"member": "far.npy", "scale": 2}}}, "for a depth in a picture and for nothing else"),
        ({"tasks": {"depth": "depth.exr"}}, "a depth is read of members that end in npy, png"),
        ({"partial": 1}, "partial = 1"),
        ({"calibration": 2.0}, "calibration = 2.0: a share between 0 and 1"),
    ],
)
def test_settings_that_cannot_be(root: Path, settings: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        splits(root, **settings)
    assert not (root / "ran").exists()


def test_compressed_shards_are_told_to_be_unpacked(tmp_path: Path):
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz") as tar:
        add(tar, "a.png", b"x")
    with pytest.raises(UserError, match=r"t\.tar\.gz: is compressed, so no sample can be read alone; unpack it"):
        open_shard(tmp_path / "t.tar.gz", ["png"], ["png"])


def test_identity_follows_the_shards_and_what_is_read(root: Path):
    one = splits(root)
    assert splits(root).identity == one.identity
    assert splits(root, tasks={"sal": "mask.png"}).identity != one.identity
    assert splits(root, size=[2, 2]).identity != one.identity
    assert splits(root, train="train-{000..001}.tar").identity != one.identity


def test_a_job_names_them_and_how_they_are_read_counts_for_nothing(root: Path):
    given = {
        "train": "train-{000..002}.tar", "validation": "val-*.tar", "image": "png",
        "tasks": {"weather": "cls", "lanes": TASKS["lanes"]},
    }  # fmt: skip
    names = Names(("image",), ("weather", "lanes"))
    one, pooled, other = (
        load_splits("mtlc.zoo:webdataset", names, root=str(root), **given, **more)
        for more in ({}, {"workers": 2}, {"zoom": 1.5})
    )
    assert one.identity == pooled.identity != other.identity
    assert one.arguments == pooled.arguments == given
