"""Lists what is known of each device, with units, sources and confidence: ``mtlc devices``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtlc.hw.devices.catalogue import device, devices


def list_devices() -> list[dict[str, Any]]:
    """Every device by name. Raises `UserError` for a file of the user's that is not right."""
    return [device(name).as_json() for name in devices()]


def show_device(name: str | Path) -> dict[str, Any]:
    """All figures of the device `name`, or of the device file at the path `name`. Raises `UserError`."""
    return device(name).as_json()
