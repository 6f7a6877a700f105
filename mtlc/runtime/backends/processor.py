"""Reads which instructions the processor of this machine has, and tells which bundles it must not run."""

from __future__ import annotations

import platform
from pathlib import Path

from mtlc.errors import Unavailable
from mtlc.runtime.bundle.manifest import Quantization

X86 = ("x86_64", "AMD64", "i686", "i386", "x86")
VNNI = ("avx512_vnni", "avx_vnni")


def cpu_flags() -> frozenset[str]:
    """The flags of the first core; none where the system does not tell (it has no ``/proc/cpuinfo``)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def saturates(flags: frozenset[str], machine: str | None = None) -> bool:
    """Whether sums of two products of 8-bit numbers saturate at 16 bits here: on x86 without VNNI.

    INT8 weights that use the full range then give wrong results without a word. False where the flags are not known.
    `machine` is the architecture (default: this machine's).
    """
    return (machine or platform.machine()) in X86 and bool(flags) and flags.isdisjoint(VNNI)


def check_precision(quantization: Quantization | None, path: str) -> None:
    """Refuse a bundle that this processor would compute wrongly. Raises `Unavailable`."""
    if quantization is not None and quantization.weights == "full" and saturates(cpu_flags()):
        raise Unavailable(
            f"{path}: its INT8 weights use the full range, and this processor (x86 without VNNI) would give wrong "
            "results without a word: quantise it with --target x86"
        )
