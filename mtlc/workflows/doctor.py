"""Tells what is installed, what is missing and how to get it, and what the processor can do: ``mtlc doctor``."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import mtlc
from mtlc.errors import Unavailable
from mtlc.hw.measure.instructions import why_unavailable
from mtlc.hw.measure.this_machine import _cpu_name
from mtlc.runtime.backends.processor import VNNI, cpu_flags

# Package -> the extra that brings it ("" for the base install) and what it is for.
_PACKAGES = {
    "numpy": ("", "running bundles"),
    "onnxruntime": ("", "running bundles"),
    "click": ("", "the command line"),
    "pydantic": ("", "reading jobs"),
    "pillow": ("images", "reading and writing pictures"),
    "torch": ("compress", "compressing and exporting"),
    "torch-pruning": ("compress", "the prune pass"),
    "safetensors": ("compress", "checkpoints"),
    "onnx": ("compress", "exporting"),
    "onnxscript": ("compress", "exporting"),
    "scipy": ("compress", "metrics"),
    "jinja2": ("compress", "the report"),
    "matplotlib": ("compress", "the report"),
    "tqdm": ("compress", "progress bars"),
    "nncf": ("compress", "quantising"),
    "openvino": ("openvino", "the openvino backend"),
    "tensorrt-rtx": ("tensorrt", "building TensorRT engines"),
    "ray": ("ray", "searching on a cluster"),
}
_FLAGS = {
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "vnni": VNNI,
    "neon": ("asimd",),
    "dotprod": ("asimddp",),
}


def doctor() -> dict[str, Any]:
    """Versions, what is missing with the command that installs it, the processor's flags and threads, backends, and
    whether instructions can be counted.
    """
    packages = {}
    for name, (extra, purpose) in _PACKAGES.items():
        found = _version(name)
        packages[name] = {"version": found, "for": purpose}
        if found is None:
            packages[name]["install"] = f"pip install 'mtlc[{extra}]'" if extra else f"pip install {name}"
    present, why, tensorrt = cpu_flags(), why_unavailable(), _tensorrt()
    return {
        "mtlc": mtlc.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": packages,
        "cpu": {
            "name": _cpu_name(),
            "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            # None where the system does not tell: absent and unknown are different answers
            "flags": {flag: bool(present & set(names)) if present else None for flag, names in _FLAGS.items()},
        },
        "cuda": _cuda(),
        "instructions": {"available": why is None, "why": why},
        "tensorrt": tensorrt,
        "backends": {
            "onnxruntime": packages["onnxruntime"]["version"] is not None,
            "openvino": packages["openvino"]["version"] is not None,
            "tensorrt": tensorrt["module"] is not None and tensorrt["gpu"] is not None,
        },
        "missing": [name for name, found in packages.items() if found["version"] is None],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _tensorrt() -> dict[str, Any]:
    """Which TensorRT is here, and the GPU and driver that engines would run on; None, and why, for what is missing."""
    from mtlc.runtime.backends.cuda_driver import Cuda
    from mtlc.runtime.backends.tensorrt_module import find_tensorrt

    found: dict[str, Any] = dict.fromkeys(("module", "version", "gpu", "compute_capability", "driver_cuda"))
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
    return {**found, "missing": missing}


def _cuda() -> str | None:
    """The first CUDA device, or None. Imports torch if it is there: the doctor may take its time."""
    try:
        import torch
    except ImportError:
        return None
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
