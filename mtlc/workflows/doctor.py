"""Tells what is installed, what is missing and how to get it, and what the processor can do: ``mtlc doctor``."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import mtlc
from mtlc.errors import Unavailable
from mtlc.extras import PACKAGES
from mtlc.hw.measure.instructions import why_unavailable
from mtlc.hw.measure.this_machine import cpu_name, usable_cores
from mtlc.results.doctor import DoctorResult, FoundPackage, InstructionCounter, Processor, TensorRtHere
from mtlc.runtime.backends.processor import VNNI, cpu_flags

_FLAGS = {
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "vnni": VNNI,
    "neon": ("asimd",),
    "dotprod": ("asimddp",),
}


def doctor() -> DoctorResult:
    """Versions, what is missing with the command that installs it, the processor's flags and threads, backends, and
    whether instructions can be counted.
    """
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
    )


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
