"""Names the processors that INT8 is made for: their kernels decide which 8-bit numbers give the right result."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from mtlc.errors import UserError, nearest
from mtlc.runtime.backends.processor import VNNI, X86, cpu_flags


@dataclass(frozen=True)
class Target:
    """How to quantise. Weights are symmetric, one scale per output channel.

    `weights` is their range: ``"full"`` (8 bits) or ``"reduced"`` (7 bits). x86 without VNNI adds pairs of products in
    16 bits, which full-range weights overflow. `symmetric` activations are int8 with zero point 0, which is all that
    TensorRT takes; others are uint8 with a zero point.
    """

    name: str
    weights: str
    symmetric: bool


LARGEST = {"full": 127.0, "reduced": 63.5}
"""What the largest magnitude of a weight's channel becomes, by the weights' range, as NNCF has it."""
TARGETS = {
    target.name: target
    for target in (
        Target("x86", "reduced", False),
        Target("x86-vnni", "full", False),
        Target("arm", "full", False),
        Target("tensorrt", "full", True),
    )
}
CPU = "cpu"
"""The target that this machine is."""


def resolve_target(name: str) -> Target:
    """The target called `name`; ``"cpu"`` is this machine's, and ``x86`` (right everywhere) where that is not known.

    Raises `UserError`.
    """
    if name == CPU:
        if platform.machine() not in X86:
            name = "arm" if platform.machine().lower() in ("aarch64", "arm64") else "x86"
        else:
            name = "x86" if cpu_flags().isdisjoint(VNNI) else "x86-vnni"
    if name not in TARGETS:
        raise UserError(f"target = {name!r}: no such target{nearest(name, [CPU, *TARGETS])}")
    return TARGETS[name]
