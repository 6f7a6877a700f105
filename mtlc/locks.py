"""Locks a path against other processes and threads, with locks that the kernel frees when their holder is gone.

A lock is `flock` on a file, never the file's existence: what a killed process left locks nothing. Who holds the lock
removes its file at the end, still holding it; who then gets the lock of a removed file sees that and tries again. So
two never hold one path, whoever comes, waits or is refused in between.

Where there is no `flock` (Windows, some network file systems) nothing is locked, and two writers are the user's to
avoid.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}


@contextmanager
def exclusive(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock file `path` while the block runs. Its folder must be there.

    With `wait` until the holder is done; without, `BlockingIOError` is raised if there is one.
    """
    descriptor = acquire(path, wait=wait)
    try:
        yield
    finally:
        release(path, descriptor)


def acquire(path: Path, *, wait: bool) -> int:
    """The descriptor of the lock file `path`, locked. Raises as `exclusive` does, and `OSError` of opening it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if lock(descriptor, wait=wait):
                if is_at(descriptor, path):
                    return descriptor
            elif is_at(descriptor, path):
                raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), str(path))
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed the file: the next one's is another


def release(path: Path, descriptor: int) -> None:
    """Remove the lock file and free the lock, in this order."""
    try:
        with contextlib.suppress(OSError):
            if is_at(descriptor, path):
                path.unlink()
    finally:
        os.close(descriptor)


def lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file or folder; False if another has it. Where the file system has no locks, it counts as locked."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def is_abandoned(folder: Path) -> int | None:
    """A locked descriptor of a folder whose maker is gone; None where it lives, or where nobody can tell."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_uid == os.geteuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(descriptor, folder):
                return descriptor
    except OSError:  # locked by its maker, or no locks here
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def is_at(descriptor: int, path: Path) -> bool:
    """Whether `path` still is what `descriptor` opened."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)
