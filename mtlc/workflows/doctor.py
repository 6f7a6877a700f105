"""Tells what is installed, what is missing and how to get it, and what the processor can do: ``mtlc doctor``."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import mtlc
from mtlc.errors import Unavailable, UserError
from mtlc.extras import PACKAGES
from mtlc.hw.devices.catalogue import user_folder
from mtlc.hw.devices.device import PRECISIONS, Figure
from mtlc.hw.devices.device_file import read_device_file
from mtlc.hw.devices.physical_units import base_unit
from mtlc.hw.measure.instructions import why_unavailable
from mtlc.hw.measure.this_machine import cpu_name, usable_cores
from mtlc.log import Log, silent
from mtlc.results.doctor import (
    DoctorResult,
    FoundPackage,
    InstructionCounter,
    Processor,
    Rate,
    Speed,
    TensorRtHere,
)
from mtlc.runtime.backends.processor import VNNI, cpu_flags

_FLAGS = {
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "vnni": VNNI,
    "neon": ("asimd",),
    "dotprod": ("asimddp",),
}


_PEAK, _MEMORY = "peak.", "memory.bandwidth"
_SECONDS = 2.0
"""How long ``--speed`` measures, in s."""


def doctor(speed: bool = False, log: Log = silent) -> DoctorResult:
    """Versions, what is missing with the command that installs it, the processor's flags and threads, backends,
    whether instructions can be counted, and how fast this machine is, as `mtlc calibrate` measured it.

    With `speed` that is measured now, for two seconds; it needs onnx and raises `ModuleNotFoundError` without it.
    """
    rates, no_rates = (_measured_now(log), None) if speed else _calibrated()
    packages = {}
    for package in PACKAGES:
        here = _version(package.name)
        told = {"version": here, "for": package.purpose}
        packages[package.name] = FoundPackage(**(told if here is not None else {**told, "install": package.install}))
    present, why, tensorrt = cpu_flags(), why_unavailable(), _tensorrt()
    return DoctorResult(
        mtlc=mtlc.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        packages=packages,
        cpu=Processor(
            name=cpu_name(),
            threads=usable_cores(),
            # None where the system does not tell: absent and unknown are different answers
            flags={flag: bool(present & set(names)) if present else None for flag, names in _FLAGS.items()},
        ),
        cuda=_cuda(),
        instructions=InstructionCounter(available=why is None, why=why),
        tensorrt=tensorrt,
        backends={
            "onnxruntime": packages["onnxruntime"].version is not None,
            "openvino": packages["openvino"].version is not None,
            "tensorrt": tensorrt.module is not None and tensorrt.gpu is not None,
        },
        missing=[name for name, found in packages.items() if found.version is None],
        speed=rates,
        speed_why=no_rates,
    )


def _calibrated() -> tuple[Speed | None, str | None]:
    """What `mtlc calibrate` wrote of this processor, and why that does not tell."""
    folder = user_folder()
    path = None if folder is None else folder / "local-cpu.toml"
    if path is None or not path.exists():
        return None, "not measured: mtlc calibrate (10 s, kept) or mtlc doctor --speed (2 s)"
    try:
        device = read_device_file(path)
    except UserError as error:
        return None, str(error)
    where = device.measured_on
    if where.get("cpu") != cpu_name():
        return None, f"{path} is of another processor ({where.get('cpu')}): run mtlc calibrate here"
    return _speed(device.figures, {}, str(where.get("date")), str(path)), None


def _measured_now(log: Log) -> Speed:
    from mtlc.hw.measure.machine_rates import measure_rates

    cores = usable_cores() or 1
    found, stem = measure_rates([cores], _SECONDS, log=log), f"threads.{cores}."
    figures = {key.removeprefix(stem): figure for key, figure in found.figures.items() if key.startswith(stem)}
    if "bandwidth" in figures:
        figures[_MEMORY] = figures.pop("bandwidth")
    return _speed(figures, found.missing, "now", None)


def _speed(figures: Mapping[str, Figure], missing: Mapping[str, str], measured: str, file: str | None) -> Speed:
    """The rates of the machine as a whole."""
    rates = {}
    for key, figure in figures.items():
        unit = base_unit(figure.unit)
        if key.startswith(_PEAK) and figure.base > 0:
            name = key.removeprefix(_PEAK).partition(".")[0]
            rates[name] = Rate(value=figure.base, unit=unit, source=figure.source, ms_per_gmac=1e12 / figure.base)
        elif key == _MEMORY:
            rates["memory"] = Rate(value=figure.base, unit=unit, source=figure.source)
    told = {key.removeprefix(_PEAK).partition(".")[0]: why for key, why in missing.items() if key.startswith(_PEAK)}
    in_order = {name: rates[name] for name in (*reversed(PRECISIONS), "memory") if name in rates}
    return Speed(measured=measured, file=file, rates=in_order, missing=told)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _tensorrt() -> TensorRtHere:
    """Which TensorRT is here, and the GPU and driver that engines would run on; None, and why, for what is missing."""
    from mtlc.runtime.backends.cuda_driver import Cuda
    from mtlc.runtime.backends.tensorrt_module import find_tensorrt

    found: dict[str, str | None] = dict.fromkeys(("module", "version", "gpu", "compute_capability", "driver_cuda"))
    missing = []
    try:
        module = find_tensorrt()
        found |= {"module": module.__name__, "version": module.__version__}
    except Unavailable as error:
        missing.append(str(error))
    try:
        cuda = Cuda()
        found |= {"gpu": cuda.gpu, "compute_capability": cuda.capability, "driver_cuda": cuda.driver}
    except Unavailable as error:
        missing.append(str(error))
    return TensorRtHere.model_validate({**found, "missing": missing})


def _cuda() -> str | None:
    """The first CUDA device, or None. Imports torch if it is there: the doctor may take its time."""
    try:
        import torch
    except ImportError:
        return None
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
