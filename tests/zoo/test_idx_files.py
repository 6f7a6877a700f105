"""The files of MNIST: what is written comes back, and what is damaged, cut, swapped or lying is one line."""

from __future__ import annotations

import gzip
import os
import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from testkit.idx_samples import idx, marked_pictures, write_set

from mtlc.errors import UserError
from mtlc.zoo import idx_files
from mtlc.zoo.idx_files import MOST, folder_with_idx_files, read_idx, read_labelled

ITEM = (28, 28)
THREE = idx(marked_pictures(3, 7))


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_written_comes_back(tmp_path: Path, packed: bool):
    read = read_labelled(write_set(tmp_path, packed=packed), "t10k")
    assert read.pictures.shape == (12, 28, 28)
    assert read.pictures.dtype == np.uint8
    assert read.pictures[:, 3, 5].tolist() == list(range(41, 53))
    assert read.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert len(read) == 12


def test_axes_are_in_the_order_of_the_file(tmp_path: Path):
    picture = np.arange(784).reshape(1, 28, 28).astype(np.uint8)
    (tmp_path / "one").write_bytes(idx(picture))
    assert np.array_equal(read_idx(tmp_path / "one", ITEM), picture)


DAMAGED = {
    "empty": (b"", "not an idx file"),
    "a picture": (b"\x89PNG\r\n\x1a\n", "not an idx file"),
    "floats": (b"\0\0\x0d\x03" + THREE[4:], "type 13; only unsigned bytes"),
    "labels": (idx(np.arange(5)), "1 axes, expected 3; are pictures and labels swapped?"),
    "half a header": (THREE[:9], "truncated within its header"),
    "32 pixels": (idx(np.zeros((1, 32, 32))), "entries of 32×32, expected 28×28"),
    "no picture": (struct.pack(">HBB3I", 0, 8, 3, 0, 28, 28), f"0 entries; 1 to {MOST} are read"),
    "too many": (struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 28, 28), "4294967295 entries"),
    "cut": (THREE[:-1], "truncated, 2351 of 2352 bytes"),
    "longer": (THREE + b"\0", "longer than its header says, 2352 bytes"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_one_line_that_names_the_file(tmp_path: Path, name: str, packed: bool):
    content, message = DAMAGED[name]
    path = tmp_path / "train-images"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_idx(path, ITEM)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["cut", "checksum", "body", "trailing"])
def test_a_damaged_archive_is_one_line(tmp_path: Path, where: str):
    whole = bytearray(gzip.compress(idx(np.random.default_rng(0).integers(0, 256, (3, 28, 28))), mtime=0))
    if where == "cut":
        whole = whole[:-20]
    elif where == "trailing":
        whole += b"more"
    else:
        whole[-6 if where == "checksum" else 400] ^= 0xFF
    path = tmp_path / "train-images.gz"
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"train-images\.gz: damaged \(.+\); get the file again"):
        read_idx(path, ITEM)


def memory_to_refuse(path: Path, words: str) -> int:
    """The most bytes that are allocated at once until the file is refused with these words."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=words):
            read_idx(path, ITEM)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_header_alone_takes_no_memory(tmp_path: Path):
    """205 MB are promised; what is allocated follows what is there."""
    path = tmp_path / "lies"
    path.write_bytes(struct.pack(">HBB3I", 0, 8, 3, MOST, 28, 28) + bytes(1000))
    assert memory_to_refuse(path, "truncated, 1000 of 205520896 bytes") < 4 << 20


def test_a_bomb_is_read_no_further_than_its_header_says(tmp_path: Path):
    """64 MB of zeros follow three pictures: 64 kB of archive."""
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(THREE + bytes(64 << 20), 6))
    assert memory_to_refuse(path, "longer than its header says") < 4 << 20


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a plain file"):
        read_idx(tmp_path / "pipe", ITEM)


def test_a_folder_in_the_place_of_a_file(tmp_path: Path):
    write_set(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    (tmp_path / "train-images-idx3-ubyte").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        read_labelled(tmp_path, "train")


def test_one_of_the_four_is_missing(tmp_path: Path):
    write_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte: no such file, nor t10k-labels-idx1-ubyte\.gz"):
        read_labelled(tmp_path, "t10k")


def test_labels_and_pictures_that_do_not_belong_together(tmp_path: Path):
    write_set(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(39)))
    with pytest.raises(UserError, match="39 labels, but train-images-idx3-ubyte has 40 pictures"):
        read_labelled(tmp_path, "train")


def test_labels_of_another_data_set(tmp_path: Path):
    write_set(tmp_path)
    labels = np.zeros(40)
    labels[17] = 10
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(UserError, match="label 10 at 17; classes are 0 to 9"):
        read_labelled(tmp_path, "train")


def test_names_with_a_dot_are_found(tmp_path: Path):
    write_set(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").rename(tmp_path / "t10k-images.idx3-ubyte")
    assert len(read_labelled(tmp_path, "t10k")) == 12


def test_the_first_folder_that_has_files(tmp_path: Path):
    assert folder_with_idx_files([tmp_path, tmp_path / "b"]) is None
    write_set(tmp_path / "b")
    assert folder_with_idx_files([tmp_path, tmp_path / "b"]) == tmp_path / "b"


def test_the_largest_set_of_ten_classes_fits():
    """EMNIST Digits has 240,000 training pictures; at most 205.5 MB are read."""
    assert MOST >= 240_000
    assert MOST * idx_files.SIDE**2 == 205_520_896
