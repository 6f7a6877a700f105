"""Reads the budget of a Python call: "40% MACs", "12 ms", {"params": "3M"}."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mtlc.errors import UserError, nearest
from mtlc.quantity import BudgetKind

_KINDS: dict[str, BudgetKind] = {
    "macs": "macs", "params": "params", "parameters": "params", "latency": "latency", "memory": "memory",
}  # fmt: skip
_UNITS: tuple[tuple[str, BudgetKind], ...] = (
    ("macs", "macs"), ("params", "params"), ("parameters", "params"), ("ms", "latency"), ("s", "latency"),
    ("b", "memory"),
)  # fmt: skip
"""What an amount ends with, by kind; the longer first, for "MACs" ends with an s, too."""
_EXAMPLES = '"40% MACs", "25 MMACs", "3M params", "12 ms", "2 MB" or {"params": "3M"}'


def budget_section(given: Any) -> dict[str, Any] | None:
    """The ``[budget]`` of a job. Raises `UserError` naming the argument; None of None.

    A mapping has the keys of the job's section: one of macs, params, memory and latency, and device with the latter.
    """
    if given is None or isinstance(given, Mapping):
        for key in given or ():
            if key not in (*_KINDS, "device"):
                raise UserError(f"budget has {key!r}{nearest(str(key), (*_KINDS, 'device'))}")
        return None if given is None else dict(given)
    if not isinstance(given, str):
        hint = f'; for a share write "{100 * given:g}% MACs"' if isinstance(given, float) and 0 < given < 1 else ""
        raise UserError(f"budget = {given!r}: give {_EXAMPLES}{hint}")
    text = given.strip()
    share = re.fullmatch(r"([^%]*%)\s*(?:of\s+(?:the\s+)?)?(\w*)", text)
    if share is not None:
        kind = _KINDS.get(share[2].lower())
        if kind is None:
            of = f"{share[2]!r} is no cost" if share[2] else "of what?"
            raise UserError(f'budget = {given!r}: {of} Give {share[1]!r} with a cost, such as "{share[1]} MACs"')
        return {kind: share[1].strip()}
    for unit, kind in _UNITS:
        if text.lower().endswith(unit):
            # "3M parameters" is "3M params" in a job.
            amount = re.sub(r"parameters$", "params", text, flags=re.IGNORECASE)
            return {kind: re.sub(r"\s+", "", amount)}
    raise UserError(f"budget = {given!r}: give {_EXAMPLES}")
