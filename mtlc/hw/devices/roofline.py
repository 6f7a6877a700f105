"""Models times: a roofline per operator, with efficiencies that were fitted to published times, never peak alone.

An operator takes ``max(MACs / (peak · e), bytes / bandwidth) + launch``, where `e` is the share of the peak rate that
its kind of operator reaches on devices of its class, and the bandwidth is the share of the memory's that was reached
(Williams, Waterman and Patterson, "Roofline", CACM 2009, with a ceiling for each kind). Norms and activations are taken
as fused into the operator before them; what else multiplies nothing pays for its bytes and for no launch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from mtlc.hw.cost.workload import Operator, Workload

Bound = Literal["compute", "memory", "launch"]
KERNEL_KINDS = ("spatial", "pointwise", "grouped", "matmul")
"""What has an efficiency: convolutions larger than 1×1; 1×1 ones; grouped (or depthwise) ones; matrix products."""
VECTOR = "vector"
"""All that multiplies nothing and runs by itself: additions, pooling, resizing, copies."""
BYTES = {"int8": 1, "fp16": 2, "bf16": 2, "fp32": 4}
_FUSED = ("norm", "activation")


@dataclass(frozen=True)
class KernelWork:
    """One operator as the model sees it; `weights` and `activations` count elements."""

    name: str
    kind: str
    macs: int
    weights: int
    activations: int


@dataclass(frozen=True)
class Machine:
    """What one inference has of a device: `peak` in MAC/s of the engine that runs it, and its memory in B/s and B.

    Without `on_chip`, weights and activations all pass the memory. With it, activations stay on the chip, and so do the
    first `on_chip` bytes of the weights; the others are read in every inference. It is infinite where all stays there.
    """

    peak: float
    bandwidth: float
    on_chip: float | None = None


@dataclass(frozen=True)
class Efficiencies:
    """What was fitted: the share of `peak` by kind and of the bandwidth, and the seconds of a launch and of a run."""

    compute: Mapping[str, float]
    memory: float
    launch_s: float
    run_s: float


@dataclass(frozen=True)
class Timing:
    """The modelled time of a kernel, what it waits for, and its place in a roofline plot.

    `rate` is MAC/s reached; `intensity` is MACs per byte that passes the memory, infinite where none does.
    """

    kernel: KernelWork
    seconds: float
    bound: Bound
    bytes: float
    compute_s: float
    memory_s: float

    @property
    def rate(self) -> float:
        return self.kernel.macs / self.seconds if self.seconds else 0.0

    @property
    def intensity(self) -> float:
        return self.kernel.macs / self.bytes if self.bytes else float("inf")


def kernels(workload: Workload) -> tuple[KernelWork, ...]:
    """The operators that take time of their own, in execution order."""
    return tuple(_kernel(operator) for operator in workload.operators if operator.kind not in _FUSED)


def timings(found: Iterable[KernelWork], machine: Machine, fitted: Efficiencies, precision: str) -> tuple[Timing, ...]:
    """The time of each kernel of an inference, in order, with weights and activations in `precision`."""
    size, kept, rows = BYTES[precision], 0.0, []
    for kernel in found:
        moved = float(size * (kernel.weights + kernel.activations))
        if machine.on_chip is not None:
            weights = size * kernel.weights
            fits = min(weights, max(machine.on_chip - kept, 0.0))
            kept += fits
            moved = weights - fits
        compute = kernel.macs / (machine.peak * fitted.compute[kernel.kind]) if kernel.macs else 0.0
        memory = moved / (machine.bandwidth * fitted.memory)
        roof = max(compute, memory)
        launch = fitted.launch_s if kernel.macs else 0.0
        bound: Bound = "launch" if launch > roof else "compute" if compute > memory else "memory"
        rows.append(Timing(kernel, roof + launch, bound, moved, compute, memory))
    return tuple(rows)


def total_s(rows: Iterable[Timing], fitted: Efficiencies) -> float:
    """Seconds of one inference."""
    return sum(row.seconds for row in rows) + fitted.run_s


def _kernel(operator: Operator) -> KernelWork:
    activations = sum(prod(shape) for shape in operator.input_shapes) + prod(operator.output_shape)
    return KernelWork(operator.name, kernel_kind(operator), operator.macs, operator.parameters, activations)


def kernel_kind(operator: Operator) -> str:
    """One of `KERNEL_KINDS`, or `VECTOR`.

    MACs per output element tell convolutions apart: k²·C is spatial, C is 1×1, and less is grouped, for C input
    channels.
    """
    if not operator.macs:
        return VECTOR
    if operator.kind != "conv":
        return "matmul"
    per_output, channels = operator.macs / prod(operator.output_shape), operator.input_shapes[0][1]
    if per_output < channels:
        return "grouped"
    return "pointwise" if per_output == channels else "spatial"
