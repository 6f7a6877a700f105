"""Locks: one holder at a time whoever comes, and nothing left that locks when a holder is gone."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from testkit.places import environment

from mtlc.errors import UserError
from mtlc.locks import exclusive, is_abandoned
from mtlc.workflows.output_folder import output_folder


def refused(out: Path) -> bool:
    try:
        with output_folder(out):
            return False
    except UserError as error:
        return str(error) == f"{out}: another run is using this folder; wait for it, or choose another --out"


def test_a_refused_run_leaves_the_lock_to_its_holder(tmp_path):
    """The third is refused as the second was, and what the first has just made stays, empty as it is."""
    with output_folder(tmp_path / "out") as out:
        (out / "work" / "01").mkdir(parents=True)
        before = os.stat(out / ".lock").st_ino
        assert [refused(out) for _ in range(3)] == [True] * 3
        assert os.stat(out / ".lock").st_ino == before
        assert (out / "work" / "01").is_dir()
    assert not (tmp_path / "out").exists()  # nothing was written
    assert not refused(tmp_path / "out")


def test_a_killed_holder_locks_nothing(tmp_path):
    code = "import os, sys; from mtlc.locks import acquire; from pathlib import Path; acquire(Path('l'), wait=False); "
    subprocess.run([sys.executable, "-c", code + "os.kill(os.getpid(), 9)"], cwd=tmp_path, env=environment())
    assert (tmp_path / "l").exists()
    with exclusive(tmp_path / "l", wait=False):
        pass
    assert not (tmp_path / "l").exists()


def test_a_lock_whose_file_was_removed_is_not_taken_for_the_next_ones(tmp_path):
    """Who waited on a removed file gets the lock of that file, which protects nothing: it must begin again."""
    path = tmp_path / "l"
    first = os.open(path, os.O_RDWR | os.O_CREAT)
    path.unlink()
    with exclusive(path, wait=False):
        assert not os.path.samestat(os.fstat(first), os.stat(path))
        with pytest.raises(BlockingIOError), exclusive(path, wait=False):
            pass
    os.close(first)


def _count(folder: Path, times: int) -> None:
    for _ in range(times):
        with exclusive(folder / "l", wait=True):
            value = int((folder / "n").read_text())
            (folder / "n").write_text(str(value + 1))


def test_many_take_turns(tmp_path):
    """Two processes of three threads each add to a number that they read and write: none is lost."""
    (tmp_path / "n").write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_in_threads, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (tmp_path / "n").read_text() == "300"
    assert not (tmp_path / "l").exists()


def _in_threads(folder: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: _count(folder, 50), range(3)))


def _enter(out: Path, times: int) -> list[int]:
    """Enter the folder so many times; how often that was refused, and how often another was in it."""
    entered = refused = met = 0
    while entered < times:
        try:
            with output_folder(out):
                entered += 1
                inside = out / "inside"
                met += inside.exists()
                inside.touch()
                (out / "work" / "01").mkdir(parents=True)
                (out / "work" / "01" / "state").touch()
                (out / "work" / "01" / "state").unlink()
                inside.unlink()
        except UserError:
            refused += 1
    return [refused, met]


def test_runs_that_come_and_go_never_meet(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: _enter(tmp_path / "out", 15), range(4)))
    assert sum(refused for refused, _ in found) > 0  # else they never tried at once
    assert sum(met for _, met in found) == 0
    assert not (tmp_path / "out").exists()


def test_a_folder_is_abandoned_when_nobody_has_it_locked(tmp_path):
    (tmp_path / "f").mkdir()
    held = is_abandoned(tmp_path / "f")
    assert held is not None
    assert is_abandoned(tmp_path / "f") is None
    os.close(held)
    assert is_abandoned(tmp_path / "missing") is None
    (tmp_path / "link").symlink_to(tmp_path / "f")
    assert is_abandoned(tmp_path / "link") is None
