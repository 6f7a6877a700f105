"""Errors that a person sees: one line each, with the exit code of the command line.

Every message names the key, the task, the layer or the file, and says what to do. A leaf module: it imports nothing.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable

LONGEST = 2000
"""Characters of a message, of which the end is kept: a name in it may be as long as a file."""
_END = 500


def escaped(text: str) -> str:
    r"""The text with what a terminal would act on, or not show, as Python writes it: ``\x1b``, ``\n``, ``\u202e``.

    Names in it may come from a stranger's file. What was escaped before stays as it is. Bytes of a path that are not
    UTF-8 are ``\xff``.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else _written_out(c) for c in text)


def _written_out(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python holds a byte that is not UTF-8 (PEP 383)
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def shortened(text: str) -> str:
    """The text on one line that a terminal can show, of at most `LONGEST` characters."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - _END - 3]} … {text[-_END:]}"
    return escaped(text)


class MtlcError(Exception):
    """Base of all errors that are shown as one line without a traceback. The message is `shortened`.

    `code` says for programs why, where there is a name for it: see `mtlc.runtime.bundle.refusals`.
    """

    exit_code = 2

    def __init__(self, *arguments: object, code: str = "") -> None:
        super().__init__(*(shortened(one) if isinstance(one, str) else one for one in arguments))
        self.code = code


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
    """An exception as one line: its class, and the `reason` that it gives, `shortened`."""
    text = reason(error)
    return shortened(type(error).__name__ if text == type(error).__name__ else f"{type(error).__name__}: {text}")


def reason(error: BaseException) -> str:
    """What an exception says, in one line: its first line, and its class's name where it says nothing.

    OpenVINO begins with the places in its sources that the error went through, a line each; what went wrong, and in
    which operator, comes after them.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith(("Exception from ", "Check '")):
        told = [text for line in lines if (text := _told(line))]
        told = [text for text in told if not text.startswith("Conversion is failed")] or told
        lines = [": ".join(dict.fromkeys(told))] if told else lines[-1:]
    return lines[0] if lines else type(error).__name__


def _told(line: str) -> str:
    """A line of OpenVINO's without the places in its sources; empty where nothing is left."""
    line = re.sub(r"(Exception from \S+:\d+|Check '.*' failed at \S+:\d+):?", "", line)
    line = line.removeprefix("-- ").removesuffix(" with a message:").strip()
    return "" if line.startswith(_FRAME) else line


_FRAME = ("FrontEnd API failed", "Model wasn't fully converted", "Summary:", "While validating", "To facilitate the")
"""How lines of OpenVINO begin that say neither what went wrong nor where in the graph."""


def check_utf8(path: str | os.PathLike[str]) -> None:
    """Raise `UserError` for a path whose bytes are not UTF-8: neither the backends nor a report could name it."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{escaped(os.fspath(path))}: its name is not UTF-8, which the backends cannot open: rename it"
        ) from None
