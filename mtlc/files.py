"""Writes files so that a kill, a full disk, a second writer or a read-only folder never leaves half of one behind.

What is written lies in a folder of its own beside its target, ``.NAME.XXXXXXXX.new``, which its writer has locked, and
is moved to its place when it is whole. What a killed writer left is not locked any more: the next writer of the same
target removes it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from mtlc.errors import UserError, check_utf8
from mtlc.locks import exclusive, is_abandoned, is_at, lock

_NEW = ".new"
_ASIDE = ".aside"
_RANDOM = r"[a-z0-9_]{8}"  # what `tempfile` puts into names
_SCRATCH = ".scratch"


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends without an error.

    At every moment the old or the new one is there, whole; of two writers the last one stays. The old one is removed.
    """
    target = Path(target)
    with _workplace(target) as place, user_errors(target):
        temporary = place / target.name
        temporary.mkdir()
        yield temporary
        for path in temporary.rglob("*"):
            if not path.is_symlink():
                _fsync(path)
        _fsync(temporary)
        os.chmod(temporary, 0o755)
        _take_place(temporary, target, place / _ASIDE)
        _fsync(target.parent)


@contextmanager
def atomic_file(target: Path, mode: int = 0o644) -> Iterator[Path]:
    """A temporary path that takes the place of `target`, with the permissions `mode`, if the block ends without error.

    The folder that it is in is the caller's own while the block runs: what else is put there is removed at the end.
    """
    target = Path(target)
    with _workplace(target) as place, user_errors(target):
        temporary = place / target.name
        temporary.touch()
        yield temporary
        _fsync(temporary)
        os.chmod(temporary, mode)
        os.replace(temporary, target)
        _fsync(target.parent)


@contextmanager
def one_at_a_time(target: Path) -> Iterator[None]:
    """Wait until no other process or thread is in this block for the same `target`.

    For what is read, changed and written again, and for what only one shall make. The lock lies beside the target, as
    ``.NAME.lock``, while somebody is in the block.
    """
    target = Path(target)
    make_folder(target.parent)
    with ExitStack() as stack:
        with user_errors(target):
            stack.enter_context(exclusive(target.with_name(f".{_stem(target.name)}.lock"), wait=True))
        yield


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """An empty folder ``mtlc-NAME-XXXXXXXX.scratch`` for temporary files, removed with all that is in it at the end.

    What killed processes of this user left under the same name is removed first.
    """
    folder, descriptor = new_scratch_folder(name)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def new_scratch_folder(name: str) -> tuple[Path, int]:
    """The folder of `scratch_folder`, and a descriptor that holds it: remove the folder, then close the descriptor."""
    above, prefix = Path(tempfile.gettempdir()), f"mtlc-{name}-"
    _remove_abandoned(above, re.compile(re.escape(prefix) + _RANDOM + re.escape(_SCRATCH)))
    return _held_folder(above, prefix, _SCRATCH)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed writers left in `folder`: of the target `name`, or of every one.

    Where one was killed between moving the old target aside and the new one to its place, the old one comes back.
    """
    stem = r".+" if name is None else re.escape(_stem(name))
    _remove_abandoned(folder, re.compile(rf"\.{stem}\.{_RANDOM}{re.escape(_NEW)}"))


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """A folder beside `target` that no other writer takes for abandoned, and that is gone at the end."""
    make_folder(target.parent)
    remove_leftovers(target.parent, target.name)
    with user_errors(target):
        place, descriptor = _held_folder(target.parent, f".{_stem(target.name)}.", _NEW)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(descriptor)


def _stem(name: str) -> str:
    """As much of a name as leaves room for what is put around it: names have at most 255 bytes."""
    return os.fsencode(name)[:200].decode("utf-8", "ignore")


def _held_folder(above: Path, prefix: str, suffix: str) -> tuple[Path, int]:
    """A new folder that is locked for as long as its descriptor is open."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=above))
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # taken for abandoned before it was locked
            continue
        lock(descriptor, wait=True)
        if is_at(descriptor, folder):
            return folder, descriptor
        os.close(descriptor)


def _remove_abandoned(above: Path, pattern: re.Pattern[str]) -> None:
    try:
        names = [entry.name for entry in os.scandir(above) if pattern.fullmatch(entry.name)]
    except OSError:
        return
    for name in names:
        descriptor = is_abandoned(above / name)
        if descriptor is None:
            continue
        try:
            _bring_back(above / name / _ASIDE, above)
            shutil.rmtree(above / name, ignore_errors=True)
        finally:
            os.close(descriptor)


def _bring_back(aside: Path, above: Path) -> None:
    """Move what was put aside to its place again, if there is nothing by now."""
    if not aside.is_dir():
        return
    for old in list(aside.iterdir()):
        if not os.path.lexists(above / old.name):
            with suppress(OSError):
                os.rename(old, above / old.name)


def _take_place(new: Path, target: Path, aside: Path) -> None:
    """Move the folder `new` to `target`, and what was at `target` to where `new` was, or under `aside`."""
    while True:
        if not os.path.lexists(target):
            try:
                os.rename(new, target)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        elif not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
        with suppress(FileNotFoundError):  # the target went away between the two looks: look again
            if not _exchange(new, target):
                _move_in_two(new, target, aside)
            return


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change their places at once. False where the system or the file system cannot."""
    import ctypes  # a replaced folder is rare, and this is slow to import

    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or an old C library
        return False
    at_cwd, exchange = -100, 2
    if renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), ctypes.c_uint(exchange)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _move_in_two(new: Path, target: Path, aside: Path) -> None:
    """What `_exchange` does, in two steps, one writer after the other. What interrupts it leaves the old or the new."""
    with one_at_a_time(target):
        aside.mkdir(exist_ok=True)
        try:
            os.rename(target, aside / target.name)
            os.rename(new, target)
        except BaseException:
            _bring_back(aside, target.parent)
            raise


def write_json(target: Path, value: Any) -> None:
    """`value` as JSON, atomically."""
    with atomic_file(target) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


def check_plain(path: Path) -> None:
    """Raise `UserError` for a pipe or a device: to read one waits, or does not end. A path where nothing is passes."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # whoever opens it says why it cannot
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path}: not a plain file")


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
