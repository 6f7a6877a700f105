"""Writing: the old content or the new one, never half, and one line for a refusal."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from mtlc import files
from mtlc.errors import UserError
from mtlc.files import atomic_file, atomic_folder, check_writable, user_errors, write_json


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
