"""Inspecting what a stranger made runs nothing of theirs and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mtlc.program.program import ModelSource, Program
from mtlc.workflows.inspect import inspect


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    source = ModelSource("mtlc.zoo:mtl_resnet", {"tasks": ["depth"], "widths": [8], "depths": [1], "decoder_width": 8})
    from mtlc.tasks.task import TaskSpec

    program = Program(source.build(), (TaskSpec("depth", "l1", "rmse"),), {"image": torch.zeros(2, 3, 16, 16)}, source)
    program.save(tmp_path / "program")
    return tmp_path / "program"


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_one_of_ours_is_costed(checkpoint):
    cost = inspect(checkpoint).cost
    assert cost is not None
    assert cost.params > 0


@pytest.mark.parametrize(
    ("factory", "kwargs"),
    [
        ("mtlc.zoo:scenes", {"train": 4, "val": 2, "size": 16}),
        ("mtlc.zoo.nyud:write_scenes", {"train": 4, "val": 2, "size": 16}),
        ("mtlc.zoo.nyud:atomic_folder", {}),
        ("os:mkdir", {}),
    ],
)
def test_a_factory_that_is_no_network_is_not_called(checkpoint, tmp_path, monkeypatch, factory, kwargs):
    monkeypatch.chdir(tmp_path)
    path = checkpoint / "program.json"
    described = json.loads(path.read_text())
    described |= {"factory": factory, "kwargs": {"root": str(tmp_path / "made"), **kwargs}}
    path.write_text(json.dumps(described))
    before = files(tmp_path)
    found = inspect(checkpoint)
    assert (found.factory, found.cost) == (factory, None)
    assert files(tmp_path) == before
