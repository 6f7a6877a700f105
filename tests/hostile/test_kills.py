"""Verbs killed at random moments: a short form of ``scripts/kill_verbs.py``, and what it takes for a difference."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import kill_verbs
import pytest
from testkit.places import ROOT, environment


def judge(one: kill_verbs.Snapshot, other: kill_verbs.Snapshot) -> kill_verbs.Undisturbed:
    return kill_verbs.Undisturbed("run", Path(), Path(), (one, (1, 1.0)), (other, (1, 1.0)))


def as_json(**value) -> bytes:
    return json.dumps(value).encode()


ONE = {"weights": b"\1\2", "page.html": b"1 ms</html>", "r.json": as_json(ms=1.0, rmse=[0.5, 0.25], seconds=1)}
OTHER = {"weights": b"\1\2", "page.html": b"2 ms</html>", "r.json": as_json(ms=2.0, rmse=[0.5, 0.25], seconds=1)}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, []),
        ({"page.html": b"3 ms</html>\n", "r.json": as_json(ms=3.0, rmse=[0.5, 0.25], seconds=9)}, []),
        ({"weights": b"\1\3"}, ["weights: 2 bytes "]),
        ({"weights": None}, ["missing: weights"]),
        ({".r.json.abc.new/": b""}, ["left over: .r.json.abc.new/"]),
        ({"page.html": b"3 ms</ht"}, ["page.html: cut off"]),
        ({"r.json": b"{"}, ["r.json: no JSON"]),
        ({"r.json": as_json(ms=1.0, rmse=[0.5, 0.26], seconds=1)}, ["r.json: rmse.1: 0.26, undisturbed 0.25"]),
        ({"r.json": as_json(ms=1.0, rmse=[0.5], seconds=1)}, ["r.json: rmse.1: None, undisturbed 0.25"]),
    ],
)
def test_what_counts_as_a_difference(change, told):
    found = {name: data for name, data in (ONE | change).items() if data is not None}
    lines = judge(ONE, OTHER).differences(found)
    assert len(lines) == len(told)
    assert all(line.startswith(start) for line, start in zip(lines, told, strict=True))


def run(tmp_path: Path, *arguments: str) -> list[dict]:
    """Kill verbs in a process of its own: it forks, and imports once what the verbs need."""
    out = tmp_path / "kills.json"
    command = [sys.executable, ROOT / "scripts" / "kill_verbs.py", *arguments, "--out", out]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[dict] = json.loads(out.read_text())["kills"]
    assert [line for one in found for line in one["wrong"]] == []
    return found


def test_training_goes_on_after_kills_to_the_same_files(tmp_path):
    found = run(tmp_path, "--verb", "init", "--verb", "train", "--kills", "2")
    assert [(one["verb"], one["number"]) for one in found] == [("init", 0), ("init", 1), ("train", 0), ("train", 1)]
    assert not all(one["ended_before"] for one in found)
    assert run(tmp_path, "--verb", "init", "--verb", "train", "--kills", "2") == found  # nothing is done twice


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_verb_goes_on_after_kills_to_the_same_files(tmp_path):
    found = run(tmp_path, "--kills", "2", "--of-run", "6")
    assert {one["verb"] for one in found} == set(kill_verbs.VERBS)
