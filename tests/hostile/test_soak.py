"""A session that is used for long: a short form of ``scripts/soak.py``, and what it takes for growth."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from soak import Held, grown, held_now, main, soak

from mtlc.runtime import Session


def samples(**kinds) -> list[Held]:
    """Twenty, in which each kind is what its function gives for the number of the sample."""
    usual = {"memory_bytes": 100 << 20, "descriptors": 10, "threads": 3, "scratch_files": 1}
    return [Held(n, **(usual | {kind: at(n) for kind, at in kinds.items()})) for n in range(20)]


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        ({}, []),
        ({"descriptors": lambda n: 10 + min(n, 3)}, []),  # at the beginning, where all is seen for the first time
        ({"descriptors": lambda n: 10 + n % 5}, []),
        ({"descriptors": lambda n: 10 + n // 10}, ["descriptors: 10 in the first half, 11 in the second"]),
        ({"threads": lambda n: n}, ["threads: 9 in the first half, 19 in the second"]),
        ({"scratch_files": lambda n: n // 19}, ["scratch_files: 0 in the first half, 1 in the second"]),
        ({"memory_bytes": lambda n: (100 << 20) + n * (100 << 10)}, []),
        (
            {"memory_bytes": lambda n: (100 << 20) + n * (1 << 20)},
            ["memory: 106.5 MiB in the first half, 114.5 MiB in the second"],
        ),
    ],
)
def test_what_counts_as_growth(kinds, told):
    assert grown(samples(**kinds)) == told


def test_what_a_process_holds_is_counted(tmp_path):
    before = held_now()
    with (tmp_path / "f").open("w"):
        assert held_now()["descriptors"] == before["descriptors"] + 1
    assert held_now()["descriptors"] == before["descriptors"]
    assert before["memory_bytes"] > 10 << 20
    assert before["threads"] >= 1


@pytest.fixture(params=["folder", "zip"])
def path(request, slim_bundle, tmp_path) -> Path:
    if request.param == "folder":
        return slim_bundle
    return Path(shutil.make_archive(str(tmp_path / "packed"), "zip", slim_bundle))


def test_nothing_grows_and_every_output_is_the_first_one(path, tmp_path):
    out = tmp_path / "soak.json"
    options = {"--runs": 1000, "--switches": 300, "--samples": 20, "--out": out}
    assert main([str(path), *(str(part) for option in options.items() for part in option)]) == 0
    found = json.loads(out.read_text())
    assert found["wrong"] == []
    assert (found["runs"], found["switches"], found["sessions"]) == (1000 + 20 * 17, 300, 41)
    assert found["outputs"] > 6
    assert len(found["held"]) == 20


def test_an_output_that_changes_is_told(slim_bundle, monkeypatch):
    calls, run = [], Session.run

    def changed(self, x, tasks=None):
        calls.append(1)
        outputs = run(self, x, tasks)
        return outputs if len(calls) != 50 else {task: np.nextafter(array, np.inf) for task, array in outputs.items()}

    monkeypatch.setattr(Session, "run", changed)
    found = soak(slim_bundle, 60, 0, threads=1)
    assert len(found["wrong"]) == 1
    assert "other than before" in found["wrong"][0]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_million_runs(slim_bundle):
    assert soak(slim_bundle, 1_000_000, 100_000)["wrong"] == []
