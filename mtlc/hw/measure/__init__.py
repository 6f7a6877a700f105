"""Measures on this machine: latency in turns, instructions, memory, start, times by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlc.lazy import lazy_names

if TYPE_CHECKING:
    from mtlc.hw.measure.in_turns import Setting, measure, measure_settings
    from mtlc.hw.measure.instructions import Counter
    from mtlc.hw.measure.layer_profile import profile_layers
    from mtlc.hw.measure.memory_and_start import footprint

_HOMES = {
    "Counter": ".instructions",
    "Setting": ".in_turns",
    "footprint": ".memory_and_start",
    "measure": ".in_turns",
    "measure_settings": ".in_turns",
    "profile_layers": ".layer_profile",
}

__all__ = [
    "Counter",
    "Setting",
    "footprint",
    "measure",
    "measure_settings",
    "profile_layers",
]

__getattr__ = lazy_names(__name__, _HOMES)
