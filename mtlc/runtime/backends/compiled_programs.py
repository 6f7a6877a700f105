"""Keeps what a backend compiled in a folder of the user's, under a key of our own and with a checksum.

OpenVINO has a cache too. It loads some damaged files without a word, and they give other numbers.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from mtlc.errors import UserError
from mtlc.files import atomic_file

_MAGIC = b"mtlc compiled program 1\n"
_DIGEST_BYTES = 32


class CompiledPrograms:
    """Files ``<key>.blob`` in a folder. What cannot be written, on a full disk or a read-only folder, is not kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @staticmethod
    def key(**follows_from: Any) -> str:
        """The key of what follows from these values and nothing else."""
        text = json.dumps(follows_from, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def read(self, key: str) -> bytes | None:
        """What was kept under `key`; None if there is nothing, or if a bit of it is not what was written."""
        try:
            data = self._path(key).read_bytes()
        except OSError:
            return None
        begin = len(_MAGIC) + _DIGEST_BYTES
        blob = data[begin:]
        return blob if data[:begin] == _MAGIC + _digest(key, blob) else None

    def write(self, key: str, blob: bytes) -> None:
        """Keep `blob` under `key`, in place of what is there."""
        with suppress(UserError, OSError), atomic_file(self._path(key)) as temporary:
            temporary.write_bytes(_MAGIC + _digest(key, blob) + blob)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.blob"


def _digest(key: str, blob: bytes) -> bytes:
    """SHA-256 of the key and the content: a file under another's name is refused as well."""
    return hashlib.sha256(key.encode() + blob).digest()
