"""Says where a board is: the table ``[reach]`` of its device file.

A device file may come from somebody else. So it names a place and no command: what ssh is, and with which keys and
options it goes there, is for the user's own configuration of ssh and the variable ``MTLC_SSH``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

FOLDER = ".cache/mtlc-board"
"""Where things lie on a board: below the user's home there."""

_PLACE = re.compile(r"(?:[A-Za-z_][\w.-]*@)?[A-Za-z0-9][A-Za-z0-9._-]*|(?:[A-Za-z_][\w.-]*@)?\[?[0-9A-Fa-f:]+\]?")
_FOLDER = re.compile(r"[\w./@+-]+", re.ASCII)


@dataclass(frozen=True)
class Reach:
    """`ssh` is a host, ``user@host`` or a name of the user's ``~/.ssh/config``; `folder` is where things lie there."""

    ssh: str
    folder: str = FOLDER


def check_place(value: object) -> str:
    """The host. Raises `ValueError` for what ssh could take for an option, or a shell for more than a name."""
    if not isinstance(value, str) or not _PLACE.fullmatch(value):
        raise ValueError(f" = {value!r}: must be a host, such as pi@raspberrypi, or a name of your ssh configuration")
    return value


def check_folder(value: object) -> str:
    """The folder. Raises `ValueError` for one that is no plain path, or that leads out of where it says it is."""
    if not isinstance(value, str) or not _FOLDER.fullmatch(value) or value.startswith("-"):
        raise ValueError(f" = {value!r}: must be a plain path, such as {FOLDER}")
    path = PurePosixPath(value)
    if ".." in path.parts or len(path.parts) < 2:
        raise ValueError(f" = {value!r}: must be a folder of its own, such as {FOLDER}")
    return value
