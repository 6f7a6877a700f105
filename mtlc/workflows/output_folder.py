"""Makes the folder that a verb writes to, locks it against a second run, and clears what killed runs left in it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtlc.errors import UserError
from mtlc.files import make_folder, remove_leftovers, user_errors
from mtlc.locks import acquire, release

LOCK = ".lock"
_OLD = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.old")
_TRIES = 100


@contextmanager
def output_folder(out: Path) -> Iterator[Path]:
    """`out`, made if need be and locked while the block runs; what killed runs left half-written in it is removed.

    Raises `UserError` if it cannot be written or another run is using it, and then changes nothing in it.
    """
    descriptor = _locked(out)
    try:
        _remove_leftovers(out)
        yield out
    finally:
        # Bad input leaves no empty folders behind: `rmdir` succeeds only where nothing was written. Before the lock is
        # freed, for what is empty now may be what the next run has just made; `out` itself it holds by its lock file.
        for folder in [*out.glob("work/*"), out / "work", out / "steps"]:
            with contextlib.suppress(OSError):
                folder.rmdir()
        release(out / LOCK, descriptor)
        with contextlib.suppress(OSError):
            out.rmdir()


def _locked(out: Path) -> int:
    for _ in range(_TRIES):
        make_folder(out)
        try:
            with user_errors(out):
                return acquire(out / LOCK, wait=False)
        except FileNotFoundError:  # the run before this one has just removed the folder, which was empty
            continue
        except BlockingIOError:
            raise UserError(f"{out}: another run is using this folder; wait for it, or choose another --out") from None
    raise UserError(f"{out / LOCK}: cannot be made; remove it, or choose another --out")


def _remove_leftovers(out: Path) -> None:
    """What atomic writes left that a kill interrupted (see `mtlc.files`), also as mtlc 0.1.0 called it."""
    for folder in (out, out / "steps", out / "work", *out.glob("work/*")):
        remove_leftovers(folder)
        for leftover in folder.glob(".*.old"):
            found = _OLD.fullmatch(leftover.name)
            if found is None or leftover.is_symlink():
                continue
            if not os.path.lexists(folder / found[1]):  # the new one never came to its place
                with contextlib.suppress(OSError):
                    leftover.rename(folder / found[1])
            shutil.rmtree(leftover, ignore_errors=True)
