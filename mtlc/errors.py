"""Errors that a person sees: one line each, with the exit code of the command line.

Every message names the key, the task, the layer or the file, and says what to do. A leaf module: it imports nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MtlcError(Exception):
    """Base of all errors that are shown as one line without a traceback."""

    exit_code = 2


class UserError(MtlcError):
    """Bad input: a job, an option, a file or a factory that cannot be used as it is."""


class BundleError(UserError):
    """A bundle that is truncated, altered, of an unknown schema or not safe to open."""


class BudgetMissed(MtlcError):
    """The budget or a task's limit could not be met; the best effort was written."""

    exit_code = 3


class VerificationError(MtlcError):
    """Two programs that should agree do not."""

    exit_code = 4


class Unavailable(MtlcError):
    """A backend, a device or an optional package is not here."""

    exit_code = 5


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: ``"; did you mean 'depth'?"`` or the known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def one_line(error: BaseException) -> str:
    """An exception as one line: its class and the first line of its message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
