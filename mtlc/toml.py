"""Reading text and TOML with one clear line for whatever is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from mtlc.errors import UserError


def read_text(path: Path, missing: str = "no such file") -> str:
    """The text of a file in UTF-8. Raises `UserError`, with `missing` where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: {missing}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The values in `text`; messages call its file `where`. Raises `UserError`."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # Python's own come through, for numbers of thousands of digits
        raise UserError(f"{where}: not valid TOML: {error}") from None
