"""Reads the efficiencies, by class of device, that were fitted to published times, and their errors.

The fit is `benchmarks/hardware/roofline_fit.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from mtlc.errors import UserError, nearest
from mtlc.hw.devices.roofline import Efficiencies

ALL, SPILLED, NONE = "all", "spilled weights", "none"
"""What passes the memory in an inference: `DeviceClass.traffic`."""


@dataclass(frozen=True)
class Error:
    """How far modelled times were off on held-out "networks" or "boards": relative, median and p90."""

    median: float
    p90: float
    held_out: str


@dataclass(frozen=True)
class DeviceClass:
    """Devices that run networks alike, with what was fitted to times of some of them.

    Times are of one image in `precision`, as a "latency" or, in a stream that keeps the device busy, a "throughput"
    (`what`). `devices` are those whose own times were in the fit. `undetermined` are kinds of operators that these
    times say nothing of. `macs` are the least and the most of a network of the fit.
    """

    name: str
    precision: str
    what: str
    traffic: str
    fitted: Efficiencies
    devices: tuple[str, ...]
    undetermined: tuple[str, ...]
    macs: tuple[int, int]
    sources: tuple[str, ...]
    errors: Mapping[str, Any]

    def error(self, device: str) -> Error | None:
        """How far modelled times are off for networks, and for a device, that the fit did not see; None if untried.

        For a device of the fit it is over networks held out; for another one over boards held out, if that is more.
        """
        networks, boards = self.errors["held_out_over_splits"], self.errors["boards_held_out"]
        if device in self.devices:
            return Error(networks["median"], networks["p90"], "networks")
        if boards is None:
            return None
        worse = max(networks, boards, key=lambda held: float(held["median"]))
        return Error(worse["median"], worse["p90"], "boards" if worse is boards else "networks")


def device_class(name: str) -> DeviceClass:
    """The class called `name`. Raises `UserError` with the nearest name if nothing was fitted for such devices."""
    classes = _read()
    if name not in classes:
        raise UserError(f"roofline = {name!r}: no efficiencies were fitted for such devices{nearest(name, classes)}")
    found = classes[name]
    return DeviceClass(
        name,
        found["precision"],
        found["what"],
        found["traffic"],
        Efficiencies(found["compute"], found["memory"], found["launch_s"], found["run_s"]),
        tuple(found["devices"]),
        tuple(found["undetermined"]),
        tuple(found["macs"]),
        tuple(found["sources"]),
        found["error"],
    )


@cache
def _read() -> dict[str, Any]:
    text = files("mtlc.hw.devices").joinpath("efficiencies.json").read_text(encoding="utf-8")
    classes: dict[str, Any] = json.loads(text)["classes"]
    return classes
