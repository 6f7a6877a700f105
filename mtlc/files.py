"""Writes files so that a kill, a full disk or a read-only folder never leaves half of one behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtlc.errors import UserError, check_utf8


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends without an error.

    An existing `target` is moved aside first and removed last: at every moment the old or the new one is whole.
    """
    target = Path(target)
    make_folder(target.parent)
    with user_errors(target):
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent))
    try:
        with user_errors(target):
            yield temporary
            for path in temporary.rglob("*"):
                if path.is_file():
                    _fsync(path)
            os.chmod(temporary, 0o755)
            aside = temporary.with_suffix(".old")
            if target.exists():
                os.rename(target, aside)
            os.rename(temporary, target)
            _fsync(target.parent)
            shutil.rmtree(aside, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` that takes its place when the block ends without an error."""
    target = Path(target)
    make_folder(target.parent)
    with user_errors(target):
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
    temporary = Path(name)
    try:
        with user_errors(target):
            yield temporary
            _fsync(temporary)
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
            _fsync(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(target: Path, value: Any) -> None:
    """`value` as JSON, atomically."""
    with atomic_file(target) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


def check_writable(target: Path) -> None:
    """Raise `UserError` where `target` plainly cannot be written, before work is done for it.

    That is where what is above it is read-only or no folder.
    """
    with user_errors(target):
        check_utf8(target)
        above = next(parent for parent in Path(target).absolute().parents if parent.exists())
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it, if they are not there. Raises `UserError` whatever the system's reason is."""
    try:
        with user_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # ENOENT in /proc, ENAMETOOLONG, ELOOP, …
        raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another output folder") from error


@contextmanager
def user_errors(target: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write `target` into one line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{target}: the disk is full; free some space and run again, finished steps are kept"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
            raise UserError(
                f"{target}: cannot be written ({os.strerror(error.errno)}); choose another output folder"
            ) from error
        raise


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder(name: str) -> Path:
    """``$XDG_CACHE_HOME/mtlc/NAME``, in ``~/.cache`` where that is not set or not absolute. It need not exist."""
    return _user_folder("XDG_CACHE_HOME", ".cache") / name


def config_folder(name: str) -> Path:
    """``$XDG_CONFIG_HOME/mtlc/NAME``, in ``~/.config`` where that is not set or not absolute. It need not exist.

    Raises `RuntimeError` for a user without a home.
    """
    return _user_folder("XDG_CONFIG_HOME", ".config") / name


def _user_folder(variable: str, usual: str) -> Path:
    configured = Path(os.environ.get(variable, ""))  # the specification has it: one that is not absolute counts not
    return (configured if configured.is_absolute() else Path.home() / usual) / "mtlc"
