"""The C library gives what the Python runtime gives of exported bundles, bit for bit: tests/native has the rest."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from testkit.backend_samples import Case
from testkit.native_library import Native, assert_equal

from mtlc.runtime import Session

NAMES = ("cnn", "cnn-fused", "experts-queue", "experts-masked", "two-inputs", "widths")


def folder_of(case: Case, tmp_path: Path) -> Path:
    """The case's bundle as a folder."""
    if case.path.is_dir():
        return case.path
    with zipfile.ZipFile(case.path) as archive:
        archive.extractall(tmp_path / "unpacked")
    return tmp_path / "unpacked"


@pytest.mark.parametrize("name", NAMES)
def test_exported_bundles_give_the_same_bits(native: Native, cases: Mapping[str, Case], name: str, tmp_path: Path):
    case = cases[name]
    path = folder_of(case, tmp_path)
    subsets = [(task,) for task in case.tasks] + [case.tasks]
    with Session(path, threads=1) as session, native.session(path) as c:
        assert c.configurations == session.configurations
        for configuration in session.configurations:
            session.configure(configuration)
            chosen = c.named(configuration)
            for tasks, batch in itertools.product(subsets, (1, 3)):
                inputs = case.inputs(batch, seed=batch)
                plan = c.plan(tasks, chosen)
                assert plan.programs == session.programs(tasks)
                assert_equal(c.run(inputs, tasks, chosen), session.run(inputs, tasks))
