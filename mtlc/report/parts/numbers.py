"""Numbers as a person reads them: 90.2 M, 1.4 MiB, 40 %. A missing or non-finite one is a dash."""

from __future__ import annotations

import math
from typing import Any

DASH = "–"


def as_count(value: Any) -> str:
    """A count with an SI prefix: 90.2 M."""
    return _scaled(value, 1000, ("", "k", "M", "G", "T"))


def as_bytes(value: Any) -> str:
    """Bytes with a binary prefix: 1.38 MiB."""
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def as_percent(share: Any, digits: int = 1) -> str:
    """A share as percent: .403 is 40.3 %."""
    return DASH if _missing(share) else f"{100 * share:.{digits}f} %"


def as_change(percent: Any) -> str:
    """A change that is already in percent, with its sign: −0.63 %."""
    return DASH if _missing(percent) else f"{round(percent, 2) + 0.0:+.2f} %".replace("-", "−")


def as_number(value: Any) -> str:
    """A metric with four significant digits."""
    return DASH if _missing(value) else f"{value:.4g}".replace("-", "−")


def as_times(value: Any) -> str:
    """A ratio: ×2.1."""
    return DASH if _missing(value) else f"×{value:.2f}" if value < 10 else f"×{value:.1f}"


def marked(figure: str, in_doubt: bool) -> str:
    """The figure with "≈" before it where what was measured is in doubt."""
    return f"≈ {figure}" if in_doubt and figure != DASH else figure


def as_duration(seconds: float) -> str:
    """90 s, 152 min."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _missing(value: Any) -> bool:
    return value is None or not math.isfinite(value)


def _scaled(value: Any, step: int, prefixes: tuple[str, ...]) -> str:
    if _missing(value):
        return DASH
    scaled, index = float(value), 0
    while abs(scaled) >= step and index < len(prefixes) - 1:
        scaled, index = scaled / step, index + 1
    number = f"{scaled:.0f}" if index == 0 else f"{scaled:.3g}" if abs(scaled) < 1000 else f"{scaled:.0f}"
    return f"{number} {prefixes[index]}".rstrip()
