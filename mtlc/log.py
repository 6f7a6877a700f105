"""Names where lines for a person go: a function that takes one line, and the one that drops it."""

from __future__ import annotations

from collections.abc import Callable

Log = Callable[[str], None]
"""Takes one line for a person, without its newline. The command line prints it on stderr."""


def silent(line: str) -> None:
    """Drop the line: what a function logs to unless it is told otherwise."""
