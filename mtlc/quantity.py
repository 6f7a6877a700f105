"""Reads amounts as people write them: "40%", "25MMACs", "2MB", "12ms"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mtlc.errors import UserError

BudgetKind = Literal["macs", "params", "memory", "latency"]


_PREFIXES = ("", "K", "M", "G")
_UNITS = {"macs": {"": 1000, "macs": 1000}, "params": {"": 1000, "params": 1000}, "memory": {"b": 1000, "ib": 1024}}
"""The units of a budget in small letters, and the step between their prefixes: 1 MB is 1000 kB, 1 MiB is 1024 KiB."""
_QUANTITY = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([kKMG]?)\s*([A-Za-z]*|%)\s*$")


@dataclass(frozen=True)
class Quantity:
    """A budget as it is written: a share of the original's cost, or an absolute cost in MACs, parameters, bytes or
    ms.
    """

    value: float
    relative: bool

    @classmethod
    def parse(cls, kind: BudgetKind, text: str | float) -> Quantity:
        """Read ``"40%"``, ``"25M"``, ``"25MMACs"``, ``12000000``, for a memory ``"2MB"`` or for a latency ``"12ms"``.

        Raises `UserError`, also for half a MAC, parameter or byte.
        """
        examples = {
            "macs": '"40%", "25MMACs" or 25000000',
            "params": '"40%", "3M" or 3000000',
            "memory": '"40%", "2MB", "1.5MiB" or 2000000 (bytes)',
            "latency": '"40%" or "12ms"',
        }
        shown = repr(text) if isinstance(text, str) else f"{text:g}"
        refusal = UserError(f"{kind} = {shown}: write {examples[kind]}")
        number, prefix, unit = split_amount(text, refusal)
        if unit == "%":
            if prefix or not 0 < number < 100:
                raise UserError(f"{kind} = {shown}: a share lies between 0% and 100%")
            return cls(number / 100, relative=True)
        if kind == "latency":
            number = milliseconds(number, prefix, unit, refusal)
        elif isinstance(text, str) and (unit or prefix or kind != "memory"):
            number = multiplied(number, prefix, unit, _UNITS[kind], refusal)
        if not 0 < number < float("inf"):
            raise UserError(f"{kind} = {shown}: must be more than zero")
        if number <= 1 and kind != "latency":
            raise UserError(f"{kind} = {shown}: must be more than one{share_hint(number)}")
        return cls(number, relative=False)

    def absolute(self, original: float) -> float:
        """The target in MACs, parameters, bytes or ms, given the original network's cost in the same unit."""
        return self.value * original if self.relative else self.value


def share_hint(number: float) -> str:
    """What to write instead of a number of at most 1 that was meant as a share: of 1 MAC there is no half."""
    return f'; for a share write "{100 * number:g}%"' if number < 1 else ""


def split_amount(text: str | float, refusal: UserError) -> tuple[float, str, str]:
    """``"25MMACs"`` as (25.0, "M", "MACs"). A number, or a text without them, has the prefix and unit "".

    Raises `refusal` where `text` is no amount.
    """
    match = _QUANTITY.match(text) if isinstance(text, str) else None
    if isinstance(text, bool) or (isinstance(text, str) and match is None):
        raise refusal
    try:
        number = float(match[1]) if match else float(text)
    except (TypeError, ValueError, OverflowError):
        raise refusal from None
    return (number, match[2], match[3]) if match else (number, "", "")


def milliseconds(number: float, prefix: str, unit: str, refusal: UserError) -> float:
    """A time in ms or s as ms. Raises `refusal` for another unit, or with a prefix: ``"12Mms"`` is a slip."""
    if prefix or unit not in ("ms", "s"):
        raise refusal
    return number * (1000 if unit == "s" else 1)


def multiplied(number: float, prefix: str, unit: str, steps: Mapping[str, int], refusal: UserError) -> float:
    """`number` times what its prefix stands for. `steps` gives, by unit in small letters, the step between prefixes.

    Raises `refusal` for a unit that is not in `steps`.
    """
    step = steps.get(unit.lower())
    if step is None or (prefix == "K" and step == 1000):  # a thousand is a small k; a capital one belongs to KiB
        raise refusal
    return number * float(step) ** _PREFIXES.index(prefix.upper())
