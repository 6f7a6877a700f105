"""Writing: the old content or the new one, never half, and one line for a refusal."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from testkit.places import environment

from mtlc import files
from mtlc.errors import UserError
from mtlc.files import (
    atomic_file,
    atomic_folder,
    check_writable,
    remove_leftovers,
    scratch_folder,
    user_errors,
    write_json,
)


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_appears_whole(tmp_path):
    with atomic_folder(tmp_path / "deep" / "out") as temporary:
        (temporary / "a").write_text("1")
        (temporary / "sub").mkdir()
        (temporary / "sub" / "b").write_text("2")
        assert not (tmp_path / "deep" / "out").exists()
    assert tree(tmp_path) == {"deep/out/a": "1", "deep/out/sub/b": "2"}
    assert (tmp_path / "deep" / "out").stat().st_mode & 0o777 == 0o755


def test_a_folder_is_replaced_not_merged(tmp_path):
    for name in ("old", "new"):
        with atomic_folder(tmp_path / "out") as temporary:
            (temporary / name).write_text(name)
    assert tree(tmp_path) == {"out/new": "new"}


class Killed(BaseException):
    """As a signal would."""


@pytest.mark.parametrize("error", [ValueError, Killed])
def test_an_error_leaves_the_old_folder(tmp_path, error):
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "a").write_text("old")

    def write() -> None:
        with atomic_folder(tmp_path / "out") as temporary:
            (temporary / "a").write_text("new")
            raise error

    with pytest.raises(error):
        write()
    assert tree(tmp_path) == {"out/a": "old"}
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, Killed])
def test_an_error_leaves_the_old_file(tmp_path, error):
    (tmp_path / "f").write_text("old")

    def write() -> None:
        with atomic_file(tmp_path / "f") as temporary:
            temporary.write_text("new")
            raise error

    with pytest.raises(error):
        write()
    assert tree(tmp_path) == {"f": "old"}


def test_json(tmp_path):
    write_json(tmp_path / "a" / "x.json", {"b": [1, None]})
    assert json.loads((tmp_path / "a" / "x.json").read_text()) == {"b": [1, None]}
    assert (tmp_path / "a" / "x.json").stat().st_mode & 0o777 == 0o644
    with pytest.raises(TypeError):
        write_json(tmp_path / "a" / "x.json", {"b": object()})
    assert tree(tmp_path) == {"a/x.json": '{\n "b": [\n  1,\n  null\n ]\n}\n'}


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full; free some space and run again"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EROFS, "cannot be written (Read-only file system); choose another output folder"),
        (errno.EACCES, "cannot be written (Permission denied)"),
    ],
)
def test_refusals_are_one_line(number, message):
    with pytest.raises(UserError) as caught, user_errors(Path("out/x")):
        raise OSError(number, "as the system says it")
    assert str(caught.value).startswith("out/x: ")
    assert message in str(caught.value)


def test_other_errors_of_the_system_are_not_hidden():
    with pytest.raises(OSError, match="too many") as caught, user_errors(Path("x")):
        raise OSError(errno.EMFILE, "too many")
    assert not isinstance(caught.value, UserError)


def test_a_disk_that_fills_up_while_the_folder_is_flushed(tmp_path, monkeypatch):
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "a").write_text("old")

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write() -> None:
        with atomic_folder(tmp_path / "out") as temporary:
            (temporary / "a").write_text("new")

    monkeypatch.setattr(files, "_fsync", full)
    with pytest.raises(UserError, match="out: the disk is full"):
        write()
    assert tree(tmp_path) == {"out/a": "old"}


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="choose another output folder"), atomic_folder(tmp_path / "taken" / "out"):
        pass


def test_what_cannot_be_written_is_told_beforehand(tmp_path, monkeypatch):
    check_writable(tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"out: cannot be written \(Not a directory\); choose another output folder"):
        check_writable(tmp_path / "file" / "deep" / "out")
    # root may write anywhere, so the system's answer is stood in for
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(UserError, match=r"out: cannot be written \(Permission denied\)"):
        check_writable(tmp_path / "deep" / "out")


def write_folder(target: Path, text: str) -> None:
    with atomic_folder(target) as temporary:
        for name in "abc":
            (temporary / name).write_text(text)


@pytest.mark.parametrize("exchange", [True, False])
def test_writers_of_one_folder_do_not_meet(tmp_path, monkeypatch, exchange):
    """Four at once: each ends without an error, a reader always finds one writer's files, and nothing else is left."""
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    out = tmp_path / "out"
    write_folder(out, "-")
    wrong: list[object] = []

    def look() -> None:
        for _ in range(400):
            try:
                held = os.open(out, os.O_RDONLY)
            except FileNotFoundError:
                if exchange:  # in two steps there is a moment without one
                    wrong.append("absent")
                continue
            try:
                texts = {Path(f"/proc/self/fd/{held}/{name}").read_text() for name in "abc"}
                if len(texts) != 1:
                    wrong.append(texts)
            except FileNotFoundError:
                pass  # it was replaced, and is being removed
            finally:
                os.close(held)

    with ThreadPoolExecutor(5) as pool:
        writers = [pool.submit(lambda n=n: [write_folder(out, f"{n}") for _ in range(10)]) for n in range(4)]
        pool.submit(look).result()
        for writer in writers:
            writer.result()
    assert wrong == []
    assert len(set(tree(out).values())) == 1
    assert os.listdir(tmp_path) == ["out"]


def test_two_that_make_a_new_folder_at_once(tmp_path):
    """Neither finds the target there when it begins; the second to end replaces the first's."""
    with atomic_folder(tmp_path / "out") as one:
        (one / "a").write_text("one")
        with atomic_folder(tmp_path / "out") as two:
            (two / "a").write_text("two")
        assert tree(tmp_path / "out") == {"a": "two"}
    assert tree(tmp_path) == {"out/a": "one"}


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt, Killed, OSError])
def test_an_interrupt_between_two_renames_leaves_the_old_folder(tmp_path, monkeypatch, at, error):
    """Where two paths cannot change places at once: before the first rename, after it, after the second."""
    write_folder(tmp_path / "out", "old")
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    calls, rename = [], os.rename

    def interrupted(source, target) -> None:
        calls.append(target)
        if len(calls) == at:
            raise error
        rename(source, target)
        if len(calls) == 2 and at == 3:
            raise error

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(error):
        write_folder(tmp_path / "out", "new")
    assert set(tree(tmp_path / "out").values()) == {"new" if at == 3 else "old"}
    assert os.listdir(tmp_path) == ["out"]


KILLED = """
import os, sys
from pathlib import Path
from mtlc import files
how, target = sys.argv[1], Path(sys.argv[2])
files._exchange = lambda one, other: False
rename, count = os.rename, []
def deadly(source, to):
    count.append(to)
    if how == f"rename {len(count)}":
        os.kill(os.getpid(), 9)
    rename(source, to)
os.rename = deadly
if how == "file":
    with files.atomic_file(target) as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), 9)
if how == "scratch":
    with files.scratch_folder("killed") as folder:
        (folder / "a").write_text("half")
        os.kill(os.getpid(), 9)
with files.atomic_folder(target) as temporary:
    (temporary / "a").write_text("new")
    if how == "folder":
        os.kill(os.getpid(), 9)
"""


def kill(how: str, target: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, how, target], env=environment(TMPDIR=str(target.parent)))
    assert done.returncode == -9


@pytest.mark.parametrize("how", ["folder", "rename 1", "rename 2"])
def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path, how):
    """Also where it was killed with the old folder aside: that comes back before the next begins, which may fail."""
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "a").write_text("old")
    kill(how, tmp_path / "out")
    assert (tmp_path / "out").exists() == (how != "rename 2")
    with pytest.raises(ValueError), atomic_folder(tmp_path / "out"):  # noqa: PT012 - any error of the block
        assert tree(tmp_path / "out") == {"a": "old"}
        raise ValueError
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "b").write_text("newer")
    assert tree(tmp_path / "out") == {"b": "newer"}
    assert [name for name in os.listdir(tmp_path) if name != ".out.lock"] == ["out"]


def test_what_a_killed_writer_of_a_file_left_goes_with_the_next_one(tmp_path):
    kill("file", tmp_path / "results.json")
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".results.json.")
    write_json(tmp_path / "other.json", 1)
    assert sorted(os.listdir(tmp_path)) == [left, "other.json"]
    write_json(tmp_path / "results.json", 1)
    assert sorted(os.listdir(tmp_path)) == ["other.json", "results.json"]


def test_a_living_writers_folder_is_not_taken_for_left_over(tmp_path):
    with atomic_file(tmp_path / "f") as one:
        one.write_text("one")
        with atomic_file(tmp_path / "f") as two:
            two.write_text("two")
        remove_leftovers(tmp_path)
        assert one.exists()
    assert tree(tmp_path) == {"f": "one"}


def test_what_a_killed_process_left_in_the_systems_folder_goes_with_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "mtlc-killed-notes").mkdir()  # not one of ours, by its name
    kill("scratch", tmp_path / "out")
    assert len(os.listdir(tmp_path)) == 2
    with scratch_folder("killed") as folder, scratch_folder("killed") as other:
        assert folder != other
        assert sorted(os.listdir(tmp_path)) == sorted([folder.name, other.name, "mtlc-killed-notes"])
    assert os.listdir(tmp_path) == ["mtlc-killed-notes"]


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match=r"out: cannot be written \(Not a directory\)"):
        write_folder(tmp_path / "out", "new")
    assert tree(tmp_path) == {"out": "mine"}


def test_the_longest_name_that_a_file_system_takes(tmp_path):
    name = "ü" * 127  # 254 bytes
    write_folder(tmp_path / name, "1")
    write_json(tmp_path / ("a" * 255), 1)
    assert sorted(os.listdir(tmp_path)) == ["a" * 255, name]
