"""Calls a verb of the command line in this process, and keeps what it printed and how it ended."""

from __future__ import annotations

import io
import json
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from mtlc.cli import main
from mtlc.errors import MtlcError, one_line


class Clock:
    """Measures seconds since it was made: by the clock, and of this process's processor time."""

    def __init__(self) -> None:
        self._started, self._spent = time.monotonic(), time.process_time()

    def read(self) -> dict[str, float]:
        """``seconds`` and ``cpu_seconds``."""
        seconds, spent = time.monotonic() - self._started, time.process_time() - self._spent
        return {"seconds": round(seconds, 2), "cpu_seconds": round(spent, 2)}


def call(*arguments: object) -> dict[str, Any]:
    """Run ``mtlc ARGUMENTS --json``: its exit code, its seconds, its error line, its result.

    A traceback is kept with an exit code of 1, which is a fault in mtlc.
    """
    words = [str(one) for one in arguments]
    stdout, stderr, clock = io.StringIO(), io.StringIO(), Clock()
    code: object = 0
    argv, sys.argv = sys.argv, ["mtlc", *words]
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr):
            main([*words, "--json", "--debug"], prog_name="mtlc")
    except SystemExit as end:
        code = end.code
    except BaseException:  # what gets past the command line is a fault of it
        code = 1
        stderr.write(traceback.format_exc())
    finally:
        sys.argv = argv
    lines = stderr.getvalue().splitlines()
    error = next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), None)
    found: dict[str, Any] = {"exit": code, "error": error, **clock.read()}
    if code == 1:
        found["traceback"] = lines[-14:]
    text = stdout.getvalue()
    found["result"] = json.loads(text) if text.startswith("{") else None
    return found


def attempt(do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Call what a verb would: its exit code, its seconds, its error line, and what it gives."""
    clock = Clock()
    found: dict[str, Any] = {"exit": 0, "error": None}
    try:
        found |= do()
    except MtlcError as error:
        found |= {"exit": error.exit_code, "error": one_line(error)}
    except Exception as error:  # what is no error of mtlc's own is a fault in it
        lines = traceback.format_exc().splitlines()
        found |= {"exit": 1, "error": f"{type(error).__name__}: {one_line(error)}", "traceback": lines[-14:]}
    return found | clock.read()
