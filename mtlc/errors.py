"""Errors that a person sees: one line each, with the exit code of the command line.

Every message names the key, the task, the layer or the file, and says what to do. A leaf module: it imports nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 2000
"""Characters of a message, of which the end is kept: a name in it may be as long as a file."""
_END = 500


def escaped(text: str) -> str:
    r"""The text with what a terminal would act on, or not show, as Python writes it: ``\x1b``, ``\n``, ``\u202e``.

    Names in it may come from a stranger's file. What was escaped before stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shortened(text: str) -> str:
    """The text on one line that a terminal can show, of at most `LONGEST` characters."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - _END - 3]} … {text[-_END:]}"
    return escaped(text)


class MtlcError(Exception):
    """Base of all errors that are shown as one line without a traceback. The message is `shortened`."""

    exit_code = 2

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(shortened(one) if isinstance(one, str) else one for one in arguments))


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


_COMPARED, _COMPARED_LENGTH, _LISTED = 2000, 200, 100
"""Known names that a misspelt one is compared with, the longest of them, and those that are listed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: ``"; did you mean 'depth'?"`` or the known names."""
    known = sorted(known)
    # What the comparison costs grows with the product of the lengths: no person's slip is as long as that.
    if len(name) <= _COMPARED_LENGTH:
        close = difflib.get_close_matches(name, [one for one in known[:_COMPARED] if len(one) <= _COMPARED_LENGTH], n=1)
        if close:
            return f"; did you mean {close[0]!r}?"
    more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    return f"; known: {', '.join(known[:_LISTED])}{more}" if known else ""


def one_line(error: BaseException) -> str:
    """An exception as one line: its class and the first line of its message, `shortened`."""
    text = str(error).strip().splitlines()
    return shortened(f"{type(error).__name__}: {text[0]}") if text else type(error).__name__
