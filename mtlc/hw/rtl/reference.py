"""Computes in numpy, to the bit, what the engine does: INT8 products, INT32 sums, a bias, requantisation to INT8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtlc.errors import UserError

Int8 = NDArray[np.int8]


@dataclass(frozen=True)
class QuantisedLinear:
    """A linear layer: `weight` (N, K) INT8, and for each of N outputs `bias` INT32, `multiplier` UINT16, `shift` 1 to
    48.

    The real scale of an output, its input's times its weight's over its own, is multiplier / 2**shift. Raises
    `UserError` where a shape or a value does not fit.
    """

    weight: Int8
    bias: NDArray[np.int32]
    multiplier: NDArray[np.uint16]
    shift: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if self.weight.dtype != np.int8 or self.weight.ndim != 2 or not self.weight.size:
            raise UserError(f"weight: must be INT8 of shape (N, K), not {self.weight.dtype} {self.weight.shape}")
        for name, dtype in (("bias", np.int32), ("multiplier", np.uint16), ("shift", np.uint8)):
            value = getattr(self, name)
            if value.dtype != dtype or value.shape != self.weight.shape[:1]:
                raise UserError(
                    f"{name}: must be {np.dtype(dtype).name} of shape {self.weight.shape[:1]}, not {value.dtype} "
                    f"{value.shape}"
                )
        if self.shift.min() < 1 or self.shift.max() > 48:
            raise UserError(f"shift: must be 1 to 48, not {self.shift.min()} to {self.shift.max()}")

    @property
    def outputs(self) -> int:
        return int(self.weight.shape[0])

    @property
    def inputs(self) -> int:
        return int(self.weight.shape[1])


def fixed_point(scale: NDArray[np.float64]) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """(multiplier, shift) nearest to each real `scale` with a multiplier of 16 bits: off by 2**-16 of it at the most.

    Raises `UserError` for a scale that is not positive, 32768 or more, or so small that the shift would exceed 48.
    """
    scale = np.asarray(scale, np.float64)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise UserError("scale: every output's scale must be positive and finite")
    # scale = mantissa · 2^exponent with a mantissa from ½ to 1, so the multiplier has its top bit set: all 16 bits
    # count.
    mantissa, exponent = np.frexp(scale)
    multiplier = np.rint(mantissa * 2.0**16).astype(np.int64)
    # A mantissa just under 1 rounds up to 2¹⁶, one bit too many: half of it, at twice the exponent's step, is the same.
    carried = multiplier == 1 << 16
    multiplier, exponent = np.where(carried, 1 << 15, multiplier), exponent + carried
    shift = 16 - exponent
    if shift.min() < 1 or shift.max() > 48:
        raise UserError(f"scale: {scale.min():g} to {scale.max():g} is outside of what a shift of 1 to 48 can say")
    return multiplier.astype(np.uint16), shift.astype(np.uint8)


def requantise(sums: NDArray[np.int64], layer: QuantisedLinear) -> Int8:
    """INT8 of `sums` (M, N): clamp(floor(((sum + bias)·multiplier + 2**(shift−1)) / 2**shift)); halves round up."""
    shift = layer.shift.astype(np.int64)
    # In INT64 nothing wraps: 33 bits of sum and bias times 16 of multiplier.
    product = (sums + layer.bias.astype(np.int64)) * layer.multiplier.astype(np.int64)
    rounded = (product + (np.int64(1) << (shift - 1))) >> shift
    made: Int8 = np.clip(rounded, -128, 127).astype(np.int8)
    return made


def linear(x: Int8, layer: QuantisedLinear) -> Int8:
    """`layer` of `x` (M, K) INT8, as (M, N) INT8."""
    return requantise(x.astype(np.int64) @ layer.weight.astype(np.int64).T, layer)


def by_queues(x: Int8, queues: Sequence[NDArray[np.intp]], layers: Sequence[QuantisedLinear]) -> list[Int8]:
    """For each expert its layer of the tokens in its queue: (len(queue), N) INT8, rows in the queue's order."""
    return [linear(x[queue], layer) for queue, layer in zip(queues, layers, strict=True)]


def expert_layer(
    x: Int8,
    queues: Sequence[NDArray[np.intp]],
    first: Sequence[QuantisedLinear],
    second: Sequence[QuantisedLinear],
    activation: Int8,
) -> list[Int8]:
    """Two-layer experts by queues: second(activation(first(x))), for each expert (len(queue), N) INT8.

    `activation` (256,) INT8 is a table over the INT8 values −128 to 127, so that any activation stays exact.
    """
    hidden = by_queues(x, queues, first)
    return [linear(activation[one.astype(np.int64) + 128], layer) for one, layer in zip(hidden, second, strict=True)]
