"""Reads a finished step back from its folder, and refuses one whose checksums do not fit."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mtlc.checksums import is_whole, say_damaged
from mtlc.compress.pipeline.identity import Step, own_generators
from mtlc.files import user_errors
from mtlc.log import Log, silent
from mtlc.program.program import Program


@dataclass(frozen=True)
class Finished:
    """A finished step. `cached` says that it was read from an earlier run; `seconds` is what it took when it ran."""

    index: int
    name: str
    folder: Path
    program: Program
    report: dict[str, Any]
    artifacts: dict[str, Any]
    cost: dict[str, int]
    missed: str | None
    seconds: float
    cached: bool


def _read(
    folder: Path, index: int, step: Step, before: Program, cached: bool = True, log: Log = silent
) -> Finished | None:
    """The finished step in `folder`, or None where there is none or its files are not what was written.

    `log` is told of the latter.
    """
    if not is_whole(folder):
        if folder.exists():
            say_damaged(folder, log)
        return None
    described = json.loads((folder / "step.json").read_text())
    with own_generators(0):  # a factory that draws its structure and not only its weights must draw it as before
        program = Program.load(folder / "program", before.source)
    return Finished(
        index, step.name, folder, program, described["report"], described["artifacts"], described["cost"],
        described["missed"], described["seconds"], cached,
    )  # fmt: skip


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn a refusal to write into one line; safetensors wraps the operating system's error in its own."""
    with user_errors(target):
        try:
            yield
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error
