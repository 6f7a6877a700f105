"""Reads a manifest's JSON strictly: no key twice, no NaN, and no text that backends would take otherwise."""

from __future__ import annotations

import json
from typing import Any

from mtlc.errors import BundleError
from mtlc.runtime.bundle.limits import MAX_NAME
from mtlc.runtime.bundle.refusals import Refusal


def parse(data: bytes) -> Any:
    """The value in `data`. Raises `BundleError` for what is not JSON."""
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"manifest.json is damaged: {(str(error) or 'too deep').splitlines()[0]}", code=Refusal.MANIFEST_DAMAGED
        ) from None


def check_text(text: str, key: str) -> None:
    """Names are in the key of all that is inside them: long ones would be copied again and again. Backends in C take
    them as far as a zero.
    """
    if len(text) > MAX_NAME:
        raise BundleError(
            f"manifest.json: {key}: {text[:20]!r}… has {len(text)} characters, more than the {MAX_NAME} of a name",
            code=Refusal.LIMIT,
        )
    if "\0" in text or (not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)):
        raise BundleError(
            f"manifest.json: {key}: {text[:20]!r} has a zero or half a character in it", code=Refusal.KEY_VALUE
        )


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is given twice")
    return values
