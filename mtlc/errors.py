"""Errors that a person sees: one line each, with the exit code of the command line.

Every message names the key, the task, the layer or the file, and says what to do. A leaf module: it imports nothing.
"""

from __future__ import annotations

import difflib
import os
import re
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
    """An exception as one line: its class, and the `reason` that it gives."""
    text = reason(error)
    return type(error).__name__ if text == type(error).__name__ else f"{type(error).__name__}: {text}"


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
            f"{printable(path)}: its name is not UTF-8, which the backends cannot open: rename it"
        ) from None


def printable(path: str | os.PathLike[str]) -> str:
    """The path with bytes that are not UTF-8 as ``\\xff``."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode().replace("\\udc", "\\x")
