"""Reads a finished step back from its folder, and refuses one whose checksums do not fit."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mtlc.compress.pipeline.identity import Step, seed_everything
from mtlc.files import user_errors
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


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "sha256.json")
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _read(folder: Path, index: int, step: Step, before: Program, cached: bool = True) -> Finished | None:
    """The finished step in `folder`, or None where there is none or its files are not what was written."""
    try:
        if json.loads((folder / "sha256.json").read_text()) != _checksums(folder):
            return None
        described = json.loads((folder / "step.json").read_text())
    except (OSError, ValueError, RecursionError):
        return None
    seed_everything(0)  # a factory that draws its structure and not only its weights must draw it as before
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
