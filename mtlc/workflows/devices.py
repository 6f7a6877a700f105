"""Lists what is known of each device, with units, sources and confidence: ``mtlc devices``."""

from __future__ import annotations

from pathlib import Path

from mtlc.hw.devices.catalogue import device, devices
from mtlc.results.known_devices import KnownDevice


def list_devices() -> list[KnownDevice]:
    """Every device by name. Raises `UserError` for a file of the user's that is not right."""
    return [show_device(name) for name in devices()]


def show_device(name: str | Path) -> KnownDevice:
    """All figures of the device `name`, or of the device file at the path `name`. Raises `UserError`."""
    return KnownDevice.model_validate(device(name).as_json())
