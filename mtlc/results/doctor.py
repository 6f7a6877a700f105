"""Describes what ``mtlc doctor`` found: packages, processor, GPU, and what can run here."""

from __future__ import annotations

from pydantic import Field

from mtlc.results.base import Result


class FoundPackage(Result):
    """A package that mtlc uses."""

    version: str | None
    """Its version; None if it is not installed."""
    purpose: str = Field(alias="for")
    """What it is for."""
    install: str | None = None
    """The command that installs it; only where it is missing."""


class Processor(Result):
    """The processor."""

    name: str
    """Its model, as the system tells it."""
    threads: int | None
    """How many cores this process may use; None where the system does not tell."""
    flags: dict[str, bool | None]
    """Instruction sets that speed up INT8 or float32: whether they are there; None where the system does not tell."""


class InstructionCounter(Result):
    """Whether the instructions of a call can be counted."""

    available: bool
    """Whether they can."""
    why: str | None
    """Why they cannot; None if they can."""


class TensorRtHere(Result):
    """The TensorRT, and the GPU and driver that its engines would run on. None is what is missing."""

    module: str | None
    """The Python module that brings it."""
    version: str | None
    """Its version."""
    gpu: str | None
    """Name of the GPU."""
    compute_capability: str | None
    """The GPU's compute capability, such as ``9.0``."""
    driver_cuda: str | None
    """The version of CUDA that the driver is for."""
    missing: list[str]
    """A line for each part that is missing."""


class Rate(Result):
    """How fast one kind of work is done."""

    value: float
    """The rate: multiply-accumulates of matrix products, or bytes to and from memory, in a second."""
    unit: str
    """``MAC/s`` or ``B/s``."""
    source: str
    """What was measured, with how many threads."""
    ms_per_gmac: float | None = None
    """How long 10⁹ multiply-accumulates take at best, in ms; None for memory."""


class Speed(Result):
    """How fast this machine is at best, measured."""

    measured: str
    """The day, or ``now``."""
    file: str | None
    """The device file that `mtlc calibrate` wrote; None for what was measured now."""
    rates: dict[str, Rate]
    """By ``fp32``, ``int8`` and so on, and ``memory``, with all cores."""
    missing: dict[str, str]
    """Why a precision has no rate."""


class DoctorResult(Result):
    """What is installed here, and what this machine can do."""

    mtlc: str
    """Version of mtlc."""
    python: str
    """Version of Python."""
    system: str
    """Operating system, its release, and the architecture."""
    packages: dict[str, FoundPackage]
    """Packages by the name they are installed under."""
    cpu: Processor
    """The processor."""
    cuda: str | None
    """Name of the first CUDA device that torch sees; None without one."""
    instructions: InstructionCounter
    """Whether instructions can be counted."""
    tensorrt: TensorRtHere
    """What there is of TensorRT."""
    backends: dict[str, bool]
    """Whether each backend can run here."""
    missing: list[str]
    """Names of the packages that are not installed."""
    speed: Speed | None = None
    """How fast this machine is; None where it was never measured."""
    speed_why: str | None = None
    """Why there is no ``speed``, and what to do."""
