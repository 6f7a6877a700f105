"""Seals what a run keeps for the next one with SHA-256, and refuses it when a bit of it is not what was written.

A sealed folder holds the checksums of all its files in ``sha256.json``. A sealed JSON file holds that of all its other
keys under ``sha256``. Both are read before anything in them is used: what is damaged is said, and begun anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtlc.files import write_json
from mtlc.log import Log

SUMS = "sha256.json"
_KEY = "sha256"


def file_checksum(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_checksums(folder: Path) -> dict[str, str]:
    """The checksum of every file in `folder` and below it, by path, without ``sha256.json`` itself."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SUMS)
    return {path.relative_to(folder).as_posix(): file_checksum(path) for path in files}


def seal_folder(folder: Path) -> None:
    """Write the checksums of the files that are in `folder` now."""
    (folder / SUMS).write_text(json.dumps(folder_checksums(folder), indent=1) + "\n")


def is_whole(folder: Path) -> bool:
    """Whether the files in a sealed folder are those that were sealed, no more, no less and no other."""
    try:
        return bool(json.loads((folder / SUMS).read_text()) == folder_checksums(folder))
    except (OSError, ValueError):
        return False


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as JSON with its checksum, atomically."""
    write_json(path, {_KEY: value_checksum(value), **value})


def read_sealed(path: Path, log: Log, then: str = "beginning anew") -> dict[str, Any] | None:
    """What `write_sealed` wrote; None where there is nothing, or it is damaged: `log` is told, and what `then`."""
    try:
        value = json.loads(path.read_text())
        if value.pop(_KEY) == value_checksum(value):
            return dict(value)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    say_damaged(path, log, then)
    return None


def say_damaged(path: Path, log: Log, then: str = "beginning anew") -> None:
    """Tell `log` that what is kept at `path` is not used, and what is done instead."""
    log(f"{path}: damaged (its SHA-256 is not what was written); {then}")


def value_checksum(value: Mapping[str, Any]) -> str:
    """SHA-256 of what is read back where `value` is written as JSON."""
    plain = json.loads(json.dumps(value))  # keys that are numbers are text by then, and sort as text
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
