"""What tells a data set from any other: its word, its files, or every sample of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.utils.data import Subset

from mtlc.errors import UserError
from mtlc.evaluation.data_identity import data_identity
from mtlc.evaluation.splits import fetch


def samples(count: int = 9) -> list[dict[str, torch.Tensor]]:
    return [{"image": torch.full((1, 2, 2), float(i)), "label": torch.tensor(i)} for i in range(count)]


def identity(data, lines: list[str] | None = None) -> str:
    return data_identity(data, fetch, "train", (lambda text: None) if lines is None else lines.append)


class Random(list):
    def __getitem__(self, index):
        return {"image": torch.rand(1, 2, 2)}


class Filed(list):
    files: object = ()


@pytest.mark.parametrize("index", range(9))
def test_every_label_counts(index):
    changed = samples()
    changed[index]["label"] = torch.tensor(99)
    assert identity(samples()) == identity(samples()) != identity(changed)


def test_the_order_and_the_type_count():
    assert identity(samples()[::-1]) != identity(samples())
    assert identity([{**s, "label": s["label"].int()} for s in samples()]) != identity(samples())


def test_random_samples_are_never_known_again_and_a_line_says_what_to_do():
    lines: list[str] = []
    assert identity(Random(samples()), lines) != identity(Random(samples()))
    assert len(lines) == 1
    assert "augment(batch, generator)" in lines[0]


def test_files_tell_a_data_set_by_their_stamps(tmp_path: Path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"1")
    data = Filed(samples())
    data.files = [path]
    lines: list[str] = []
    before = identity(data, lines)
    assert lines == []
    assert identity(data) == before
    os.utime(path, ns=(1, 1))
    assert identity(data) != before
    path.unlink()
    with pytest.raises(UserError, match="is among its files, and is not there"):
        identity(data)


def test_a_subset_is_told_by_its_whole_and_its_indices():
    assert identity(Subset(samples(), [1, 2])) == identity(Subset(samples(), [1, 2]))
    assert identity(Subset(samples(), [1, 2])) != identity(Subset(samples(), [2, 1]))
