"""The devices that costs are known for, each a TOML file. Packages add devices under the entry points ``mtlc.devices``."""

from __future__ import annotations

import os
import platform
import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.resources import files
from pathlib import Path
from typing import Any

from mtlc.errors import UserError, nearest

GROUP = "mtlc.devices"


@dataclass(frozen=True)
class Device:
    """A device by name. A `local` one is this machine: its costs are measured through `backend`, not modelled."""

    name: str
    title: str
    local: bool = False
    backend: str | None = None


def devices() -> tuple[str, ...]:
    """The names of all devices: those of mtlc and those of installed packages."""
    return tuple(sorted({*_own(), *(point.name for point in entry_points(group=GROUP))}))


def device(name: str) -> Device:
    """The device called `name`. Raises `UserError` with the nearest name if there is none."""
    own = _own()
    if name in own:
        return _read(name, own[name])
    for point in entry_points(group=GROUP):
        if point.name == name:
            found = point.load()
            if not isinstance(found, Device):
                raise UserError(
                    f"device {name!r}: its package gives a {type(found).__name__}, not a mtlc.hw.devices.Device"
                )
            return found
    raise UserError(f"no device {name!r}{nearest(name, devices())}")


def this_machine() -> dict[str, Any]:
    """What a measurement must say about where it ran: CPU, cores, system, versions and the load at this moment."""
    try:
        onnxruntime = version("onnxruntime")
    except PackageNotFoundError:
        onnxruntime = None
    return {
        "name": "local-cpu",
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime,
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _own() -> dict[str, str]:
    folder = files("mtlc.hw").joinpath("devices")
    return {
        entry.name.removesuffix(".toml"): entry.read_text()
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    }


def _read(name: str, text: str) -> Device:
    return Device(name=name, **tomllib.loads(text))


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware"):
            return " ".join(value.split())
    return platform.processor() or "unknown CPU"
