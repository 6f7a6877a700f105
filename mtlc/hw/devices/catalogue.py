"""Finds a device by its name or its file.

The devices that are known are, the first that has the name counts: a file that is named by its path; those in the
user's folder; those of mtlc; and those that packages bring under the entry points ``mtlc.devices``.
"""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from mtlc.entry_points import added_names, find_addition
from mtlc.errors import UserError, nearest
from mtlc.hw.devices.device import Device, Figure
from mtlc.hw.devices.device_file import parse_device, read_device_file
from mtlc.hw.measure.this_machine import this_machine

__all__ = ["Device", "Figure", "device", "devices", "is_file", "local_device", "this_machine", "user_folder"]

GROUP = "mtlc.devices"
"""The entry points under which packages add devices."""

_SUFFIX = ".toml"


def devices() -> tuple[str, ...]:
    """The names of all devices: those of the user, of mtlc and of installed packages."""
    return tuple(sorted({*_users(), *_own(), *added_names(GROUP)}))


def device(name: str | Path) -> Device:
    """The device called `name`, or the one in the file `name` if that ends in ``.toml``.

    Raises `UserError` with the nearest name if there is none, or with the file and the key if a file is not right.
    """
    if is_file(name):
        return read_device_file(Path(name).expanduser())
    name = str(name)
    if (path := _users().get(name)) is not None:
        return read_device_file(path)
    own = _own()
    added = find_addition(GROUP, name, own)
    if name in own:
        return replace(parse_device(name, own[name], f"{name}{_SUFFIX}"), origin="mtlc")
    if added is not None:
        found = added.load()
        if not isinstance(found, Device):
            raise added.refused(f"it is a {type(found).__name__}, not a mtlc.hw.devices.device.Device")
        if found.name != name:
            raise added.refused(f"its device is called {found.name!r}; give both one name")
        return found
    raise UserError(f"no device {name!r}{nearest(name, devices())}")


def local_device(name: str | Path) -> Device:
    """`device`, for what has to be measured. Raises `UserError` also for a device that is not this machine."""
    found = device(name)
    if not found.local:
        raise UserError(f"device {str(name)!r}: latency is measured, and only on this machine: use 'local-cpu'")
    return found


def is_file(name: str | Path) -> bool:
    """Whether `name` is the path of a device file and not the name of a device."""
    return str(name).endswith(_SUFFIX)


def user_folder() -> Path | None:
    """Where the user's own device files are, whether it exists or not; None for a user without a home.

    ``$XDG_CONFIG_HOME/mtlc/devices``, and ``~/.config`` where that variable is not set or, as its specification has
    it, not absolute.
    """
    configured = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    if not configured.is_absolute():
        try:
            configured = Path.home() / ".config"
        except RuntimeError:
            return None
    return configured / "mtlc" / "devices"


def _users() -> dict[str, Path]:
    folder = user_folder()
    try:
        found = sorted(folder.glob(f"*{_SUFFIX}")) if folder is not None else []
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
    return {path.name.removesuffix(_SUFFIX): path for path in found if not path.name.startswith(".")}


def _own() -> dict[str, str]:
    folder = files("mtlc.hw.devices")
    return {
        entry.name.removesuffix(_SUFFIX): entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(_SUFFIX)
    }
