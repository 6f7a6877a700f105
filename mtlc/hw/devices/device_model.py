"""Predicts how long a workload takes on a device that is not at hand, by a roofline of the device's figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from mtlc.errors import UserError
from mtlc.hw.cost.workload import Workload
from mtlc.hw.devices.catalogue import device as find
from mtlc.hw.devices.device import Device
from mtlc.hw.devices.efficiencies import ALL, SPILLED, DeviceClass, device_class
from mtlc.hw.devices.roofline import KERNEL_KINDS, Machine, Timing, kernels, timings, total_s

BOUNDS = ("compute", "memory", "launch")
_KINDS = {"spatial": "convolutions", "pointwise": "1×1 convolutions", "grouped": "grouped convolutions"}


@dataclass(frozen=True)
class DeviceModel:
    """A device that can be modelled, and the class whose efficiencies hold for it."""

    device: Device
    of: DeviceClass
    machine: Machine

    @property
    def ceilings(self) -> dict[str, float]:
        """The rate in MAC/s that each kind of operator reaches where nothing else holds it up."""
        return {kind: self.machine.peak * self.of.fitted.compute[kind] for kind in KERNEL_KINDS}

    @property
    def bandwidth(self) -> float | None:
        """What the memory reaches, in B/s; None where nothing passes it."""
        reached = self.machine.bandwidth * self.of.fitted.memory
        return None if self.machine.on_chip is not None and not isfinite(self.machine.on_chip) else reached


def device_model(name: str | Path) -> DeviceModel:
    """The model of a device by name or file. Raises `UserError` if it lacks a figure, or none was fitted."""
    found = find(name)
    if found.local:
        raise UserError(f"device {str(name)!r}: is this machine: its times are measured, not modelled")
    if found.roofline is None:
        known = any(key.startswith("peak.") for key in found.figures)
        why = "" if known else "its peak rate is not known, and "
        raise UserError(f"device {str(name)!r}: {why}no published times of such devices were fitted: {_instead(found)}")
    of = device_class(found.roofline)
    peak, bandwidth, on_chip = found.peak(of.precision), found.bandwidth(), found.value("memory.on_chip")
    needed = {f"[peak.{of.precision}.dense]": peak}
    if of.traffic == ALL:
        needed["[memory.bandwidth]"] = bandwidth
    elif of.traffic == SPILLED:
        needed["[memory.on_chip]"] = on_chip
    lacking = [key for key, value in needed.items() if value is None]
    if lacking or peak is None:
        raise UserError(
            f"device {str(name)!r}: {' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not known: "
            f"give {'it' if len(lacking) == 1 else 'them'} in a device file of yours (docs/devices.md)"
        )
    if of.traffic == ALL and bandwidth is not None:
        return DeviceModel(found, of, Machine(peak / (found.value("engines") or 1.0), bandwidth))
    # The fitted memory rate of such a class is one in B/s.
    return DeviceModel(found, of, Machine(peak, 1.0, on_chip if of.traffic == SPILLED else float("inf")))


def modelled(model: DeviceModel, works: Sequence[Workload]) -> dict[str, Any]:
    """The modelled time of one inference that runs `works` one after the other, in ms, with what bounds it, by layer.

    ``bounds`` are shares of the time by what it waits for; ``layers`` are ``{"name", "ms", "bound", "intensity",
    "rate"}`` in execution order, with MACs per byte (None where no byte passes the memory) and MAC/s.
    """
    rows = timings([k for work in works for k in kernels(work)], model.machine, model.of.fitted, model.of.precision)
    fitted, total = model.of.fitted, total_s(rows, model.of.fitted)
    waits = {**dict.fromkeys(BOUNDS, 0.0), "launch": fitted.run_s}
    for row in rows:
        for bound, seconds in _parts(row, row.seconds - max(row.compute_s, row.memory_s)).items():
            waits[bound] += seconds
    return {
        "ms": 1e3 * total,
        "run_ms": 1e3 * fitted.run_s,
        "bounds": {bound: waits[bound] / total for bound in BOUNDS},
        "layers": _layers(rows),
        "outside_fit": _outside(model, rows),
        "notes": _notes(model, rows),
    }


def described(model: DeviceModel) -> dict[str, Any]:
    """What a report says of the model: the device, its roof, and how far the times are to be trusted."""
    error = model.of.error(model.device.name)
    return {
        "device": model.device.name,
        "title": model.device.title,
        "kind": "modelled",
        "what": model.of.what,
        "precision": model.of.precision,
        "class": model.of.name,
        "error": None if error is None else asdict(error),
        "peak": model.machine.peak,
        "bandwidth": model.bandwidth,
        "peak_bandwidth": model.device.bandwidth(),
        "ceilings": model.ceilings,
    }


def _instead(found: Device) -> str:
    if found.kind == "cpu":
        return "run mtlc calibrate and mtlc profile on the board itself"
    return 'in a device file of yours, roofline = "…" names the class of it (docs/roofline.md)'


def _parts(row: Timing, launch: float) -> dict[str, float]:
    return {"compute" if row.compute_s > row.memory_s else "memory": row.seconds - launch, "launch": launch}


def _layers(rows: Sequence[Timing]) -> list[dict[str, Any]]:
    groups: dict[str, list[Timing]] = {}
    for row in rows:
        groups.setdefault(row.kernel.name, []).append(row)
    return [_layer(name, group) for name, group in groups.items()]


def _layer(name: str, group: Sequence[Timing]) -> dict[str, Any]:
    seconds, macs, moved = (
        sum(values) for values in zip(*((r.seconds, r.kernel.macs, r.bytes) for r in group), strict=True)
    )
    main = max(group, key=lambda row: row.seconds)
    return {
        "name": name,
        "ms": 1e3 * seconds,
        "bound": main.bound,
        "kernel": main.kernel.kind,
        "intensity": macs / moved if moved else None,
        "rate": macs / seconds if seconds else 0.0,
    }


def _outside(model: DeviceModel, rows: Sequence[Timing]) -> str | None:
    """Whether the work is "smaller" or "larger" than that of any network of the fit."""
    macs, (least, most) = sum(row.kernel.macs for row in rows), model.of.macs
    return "smaller" if macs < least else "larger" if macs > most else None


def _notes(model: DeviceModel, rows: Sequence[Timing]) -> list[str]:
    """What makes this time less certain than the error says."""
    of, found = model.of, []
    if of.what == "throughput":
        found.append("It is the time per frame of a stream that keeps the device busy; one frame alone takes longer.")
    if model.of.error(model.device.name) is None:
        found.append(
            f"No published time of this device was fitted, only of {', '.join(of.devices)}: the error is not known."
        )
    if (side := _outside(model, rows)) is not None:
        least, most = (f"{macs / 1e9:.2g}" for macs in of.macs)
        found.append(
            f"The network is {side} than any of the fit, which had {least} to {most} GMACs: the error may be larger."
        )
    kinds = {row.kernel.kind for row in rows if row.bound == "compute"}
    if unsure := [_KINDS.get(kind, "matrix products") for kind in of.undetermined if kind in kinds]:
        found.append(f"The published times do not determine the efficiency of {' and '.join(unsure)}.")
    return found
