"""Measures what this machine can do and writes it down as the device file of ``local-cpu``: ``mtlc calibrate``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from mtlc.errors import UserError
from mtlc.hw.devices.catalogue import is_file, user_folder
from mtlc.hw.devices.device import Device, Figure
from mtlc.hw.devices.device_file import read_device_file, write_device_file
from mtlc.hw.measure.machine_rates import measure_rates
from mtlc.hw.measure.this_machine import this_machine
from mtlc.log import Log, silent
from mtlc.results.known_devices import CalibrationResult, KnownDevice

NAME = "local-cpu"
_BUSY_SPREAD = 0.25


def calibrate(
    out: Path | None = None,
    threads: Sequence[int] = (),
    seconds: float = 10.0,
    log: Log = silent,
) -> CalibrationResult:
    """Measure this machine with each number of `threads` (default: one, and all cores) and write the device file.

    Its peak rates and bandwidth are those of the largest number of threads. Without `out` the file goes to the user's
    folder as ``local-cpu.toml``, which counts before the one of mtlc. The result has the ``device``, the ``path``,
    ``missing`` (why by figure) and ``doubts``, which say that the machine was busy. Raises `UserError` before anything
    is measured if `out` is no place for it.
    """
    path = _target(out)
    machine = this_machine()
    cores = int(machine["cores"] or 1)
    counts = sorted(set(threads)) or sorted({1, cores})
    if counts[-1] > cores:
        raise UserError(f"--threads {counts[-1]}: this process may use {cores} cores")
    rates = measure_rates(counts, seconds, log=log)
    figures = {**_system(cores), **_top(rates.figures, counts[-1]), **rates.figures}
    machine.pop("name")
    device = Device(
        name=path.name.removesuffix(".toml"),
        title=machine["cpu"],
        local=True,
        backend="onnxruntime",
        kind="cpu",
        notes="; ".join(f"not measured: {key} ({why})" for key, why in rates.missing.items()),
        figures=figures,
        measured_on={"date": datetime.now(UTC).date().isoformat(), **machine, "seconds": seconds},
        origin=str(path),
    )
    write_device_file(device, path)
    return CalibrationResult(
        path=str(path),
        device=KnownDevice.model_validate(device.as_json()),
        missing=dict(rates.missing),
        doubts=_doubts(rates.figures, machine["load_1min"], cores),
    )


def _target(out: Path | None) -> Path:
    """Where the file goes. What is there already may be a calibration, and nothing else."""
    if out is None:
        folder = user_folder()
        if folder is None:
            raise UserError("there is no home folder to write to: say where with --out FILE.toml")
        out = folder / f"{NAME}.toml"
    if not is_file(out):
        raise UserError(f"--out {out}: a device file ends in .toml")
    if out.exists():
        try:
            local = read_device_file(out).local
        except UserError:
            local = False
        if not local:
            raise UserError(f"{out}: exists and is no calibration of mtlc; move it away or choose another --out")
    return out


def _system(cores: int) -> dict[str, Figure]:
    figures = {"cores": Figure(cores, "count", "the cores that this process may use", "measured")}
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        figures["memory.capacity"] = Figure(round(total / 2**30, 2), "GiB", "the operating system", "measured")
    except (AttributeError, ValueError, OSError):
        pass  # not POSIX: the file goes without
    return figures


def _top(figures: dict[str, Figure], threads: int) -> dict[str, Figure]:
    """The figures of the device as a whole: those of the largest number of threads."""
    stem = f"threads.{threads}."
    own = {key.removeprefix(stem): figure for key, figure in figures.items() if key.startswith(stem)}
    return {"memory.bandwidth" if key == "bandwidth" else key: figure for key, figure in own.items()}


def _doubts(figures: dict[str, Figure], load: float | None, cores: int) -> list[str]:
    """Why the figures may be too low, a line each."""
    lines = []
    if load is not None and load > 0.5 * cores:
        lines.append(f"the machine was busy: a load of {load:g} on {cores} cores before the start")
    wide = [key for key, figure in figures.items() if (figure.spread or 0) > _BUSY_SPREAD]
    if wide:
        lines.append(f"the turns differ by more than {_BUSY_SPREAD:.0%}: {', '.join(wide)}")
    return lines
