"""Lays out what verbs print: tables, counts with prefixes, changes in percent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtlc.results.latency import Ratio

IN_DOUBT = "~"
"""Before a measured figure that is in doubt: the machine was busy, or the rounds differ. A line says why."""
NETWORK = "(network)"
"""What operators in the forward of the network itself, in no layer of it, are listed under."""


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns two spaces apart; numbers to the right, words to the left."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = [all(_is_number(row[i]) for row in cells[1:]) for i in range(len(header))]
    lines = []
    for row in cells:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell.lstrip(f"+-{IN_DOUBT}")[:1].isdigit()


def count(value: float | None, unit: str = "") -> str:
    """A count with three digits and a prefix: ``25.3 M``."""
    if value is None:
        return "-"
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.4g} {unit}".rstrip()


def change(before: float | None, after: float | None) -> str:
    return "-" if not before or after is None else f"{100 * (after / before - 1):+.1f}%"


def ratio_text(ratio: Ratio | None, in_doubt: bool = False) -> str:
    """``1.60x (1.52 to 1.71)``: how many times as fast, with p10 and p90 of the rounds; empty for none."""
    if ratio is None:
        return ""
    mark = IN_DOUBT if in_doubt or ratio.doubt is not None else ""
    return f"{mark}{ratio.median:.2f}x ({ratio.p10:.2f} to {ratio.p90:.2f})"


def cpu_ratio_text(ratio: Ratio | None) -> str:
    """The same by processor time, without a spread; empty for none, a dash where it is not known."""
    if ratio is None:
        return ""
    return "-" if ratio.cpu is None else f"{ratio.cpu:.2f}x"


def doubts_text(doubts: Sequence[str]) -> str:
    """The line that says what the mark means and why it is there."""
    return f"{IN_DOUBT} in doubt: {'; '.join(doubts)}; measure again on a quiet machine (--wait-quiet)"


def config_text(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {json.dumps(value)}" for key, value in config.items())


def share(used: float, total: float | None) -> str:
    return "-" if not total else f"{100 * used / total:.1f}%"


def decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def identical_text(identical: bool) -> str:
    return "identical" if identical else "DIFFERS"
