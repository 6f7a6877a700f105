"""Makes the folder that a verb writes to, locks it against a second run, and clears what killed runs left in it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtlc.errors import UserError
from mtlc.files import make_folder, user_errors

try:
    import fcntl
except ImportError:  # not on Windows, where two runs in one folder are the user's to avoid
    fcntl = None  # type: ignore[assignment]


@contextmanager
def output_folder(out: Path) -> Iterator[Path]:
    """`out`, made if need be and locked while the block runs; what killed runs left half-written in it is removed.

    Raises `UserError` if it cannot be written or another run is using it.
    """
    make_folder(out)
    with user_errors(out):
        descriptor = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"{out}: another run is using this folder; wait for it, or choose another --out"
                ) from None
        _remove_leftovers(out)
        yield out
    finally:
        with contextlib.suppress(OSError):
            (out / ".lock").unlink()
        for folder in [*out.glob("work/*"), out / "work", out / "steps", out]:
            with contextlib.suppress(OSError):
                folder.rmdir()  # succeeds only where nothing was written: bad input leaves no empty folders behind
        os.close(descriptor)


def _remove_leftovers(out: Path) -> None:
    """Temporary folders of atomic writes that a kill interrupted (see `mtlc.files`)."""
    for folder in (out, out / "steps"):
        for leftover in [*folder.glob(".*.new"), *folder.glob(".*.old")]:
            shutil.rmtree(leftover, ignore_errors=True)
