"""Samples of streams: in memory up to a size, then in a file that nobody else sees, and the same either way."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtlc.compress.training.step_loader import StepLoader, StepReader
from mtlc.errors import UserError
from mtlc.evaluation import kept_samples
from mtlc.evaluation.kept_samples import KeptSamples, size_of
from mtlc.evaluation.sample_forms import Names
from mtlc.evaluation.splits import as_splits, fetch

SAMPLE = 4 * 3 * 8 * 8 + 4 * 8 * 8
"""Bytes of a picture and a depth."""


def stream(count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for number in range(count):
        yield torch.full((3, 8, 8), float(number)), torch.full((1, 8, 8), number / 2)


def test_sizes_are_those_of_what_samples_hold():
    sample = {"image": torch.zeros(3, 4), "depth": [np.zeros(5, np.uint8), b"abc"], "name": "xy"}
    assert size_of(sample) == 48 + 5 + 3 + 2
    assert size_of(Image.new("RGB", (4, 5))) == 60


def test_what_does_not_fit_in_memory_is_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(kept_samples, "MOST_BYTES", 5 * SAMPLE)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    told: list[str] = []
    splits = as_splits((stream(20), stream(4)), Names(("image",), ("depth",)), "given", told.append)
    assert "[data] train: 15 of 20 samples did not fit in memory, and are in a file" in told
    assert list(tmp_path.iterdir()) == []  # it has no name
    whole = splits.train.dataset
    assert [int(whole[place]["image"][0, 0, 0]) for place in range(20)] == list(range(20))
    assert fetch(whole, [19, 3, 11])["depth"][:, 0, 0, 0].tolist() == [9.5, 1.5, 5.5]
    in_memory = as_splits((stream(20), stream(4)), Names(("image",), ("depth",)), "given")
    monkeypatch.setattr(kept_samples, "MOST_BYTES", 1 << 30)
    assert in_memory.identity == splits.identity


def test_workers_that_were_forked_read_the_file_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept_samples, "MOST_BYTES", 2 * SAMPLE)
    data = as_splits((stream(20), stream(4)), Names(("image",), ("depth",)), "given").train
    alone = StepReader(data, seed=1, batch=4, augment=False)
    with StepLoader(StepReader(data, seed=1, batch=4, augment=False), range(4), workers=2) as loader:
        for step in range(4):
            assert torch.equal(loader.read(step)["depth"], alone.read(step)["depth"])


def test_it_is_a_sequence():
    kept = KeptSamples()
    for number in range(5):
        kept.append(number)
    assert list(kept) == [0, 1, 2, 3, 4]
    assert kept[-1] == 4
    assert kept[1:3] == [1, 2]
    with pytest.raises(IndexError):
        kept[5]


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept_samples, "MOST_BYTES", 2 * SAMPLE)

    def full(**_: object) -> object:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(kept_samples.tempfile, "TemporaryFile", full)
    with pytest.raises(UserError, match=r"cannot keep sample 2 there .*No space left.* TMPDIR"):
        as_splits((stream(20), stream(4)), Names(("image",), ("depth",)), "given")
