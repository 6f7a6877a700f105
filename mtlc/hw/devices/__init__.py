"""Describes devices: peak rates, bandwidth, memory, power, each with its source.

Models the times of a network on them with a roofline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlc.lazy import lazy_names

if TYPE_CHECKING:
    from mtlc.hw.devices.catalogue import devices, local_device
    from mtlc.hw.devices.device import Device, Figure

_HOMES = {
    "Device": ".device",
    "Figure": ".device",
    "devices": ".catalogue",
    "local_device": ".catalogue",
}

__all__ = [
    "Device",
    "Figure",
    "devices",
    "local_device",
]

__getattr__ = lazy_names(__name__, _HOMES)
