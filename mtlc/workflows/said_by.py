"""Says where the lines of a Python call go."""

from __future__ import annotations

import sys

from mtlc.errors import UserError, escaped
from mtlc.log import Log, between_bars


def said_by(log: Log | None) -> Log:
    """Where lines about the progress go: stderr, unless the caller says."""
    if log is not None and not callable(log):
        raise UserError(f"log = {log!r}: give a function that takes a line, such as print or mtlc.silent")
    return _on_stderr if log is None else log


def _on_stderr(line: str) -> None:
    with between_bars():
        print(escaped(line), file=sys.stderr, flush=True)
