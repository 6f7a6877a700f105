"""Tries other arrays and buffers for an accelerator: the Pareto front of latency, DSP slices and memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mtlc.errors import UserError
from mtlc.hw.fpga.accelerator import Accelerator, Policy
from mtlc.hw.fpga.event_simulation import simulate
from mtlc.hw.fpga.resources import Board, Resources, check_fits, resources
from mtlc.hw.routing.moe_vit_shape import MoeVit
from mtlc.hw.routing.routing_trace import Frame
from mtlc.log import tracked
from mtlc.results.fpga import DesignResult, Kind

LINEAR = ((8, 8), (16, 8), (16, 16), (32, 16), (32, 32))
QUERIES = (1, 2, 4, 8)
BUFFERS = ((1, 1 << 18), (2, 1 << 16), (2, 1 << 17), (2, 1 << 18), (2, 1 << 19))


@dataclass(frozen=True)
class Design:
    """An accelerator of the search: mean ms of the frames, and what it takes of the board."""

    accelerator: Accelerator
    ms: float
    resources: Resources
    kind: Kind = "modelled"

    @property
    def costs(self) -> tuple[float, int, int]:
        """Latency, DSP slices, and memory in blocks of 36 Kib: the less the better."""
        return self.ms, self.resources.dsp, self.resources.bram36_equivalent

    def results(self) -> DesignResult:
        """The design's costs, and what in it is not the base's."""
        hw = self.accelerator
        return DesignResult(
            kind=self.kind,
            ms=self.ms,
            dsp=self.resources.dsp,
            bram36=self.resources.bram36,
            uram=self.resources.uram,
            linear=[hw.linear.outputs, hw.linear.inputs],
            queries=hw.attention.queries,
            buffers=hw.weights.buffers,
            buffer_bytes=hw.weights.buffer_bytes,
        )


@dataclass(frozen=True)
class DesignSearch:
    """All designs that fit, in the order tried, the front among them by latency, and how many did not fit."""

    designs: tuple[Design, ...]
    front: tuple[Design, ...]
    too_large: int


def explore_designs(
    network: MoeVit, base: Accelerator, board: Board, frames: Sequence[Frame], policy: Policy = "reordered",
    linear: Iterable[tuple[int, int]] = LINEAR, queries: Iterable[int] = QUERIES,
    buffers: Iterable[tuple[int, int]] = BUFFERS, kind: Kind = "modelled",
) -> DesignSearch:  # fmt: skip
    """Every combination of linear arrays (outputs, inputs), query slots and buffers (number, bytes) in place of
    `base`'s.

    An accelerator with an engine has that array as columns and rows, and its own two banks instead of buffers.
    Raises `UserError` if nothing fits the board, with the shortfall of the design that comes nearest.
    """
    designs, refused = [], []
    # The engine's banks are part of its Verilog, no free choice.
    if base.engine is not None:
        buffers = [(base.weights.buffers, base.weights.buffer_bytes)]
    combinations = list(itertools.product(linear, queries, buffers))
    for (outputs, inputs), slots, (count, size) in tracked(combinations, "designs"):
        made = base.changed(
            linear={"outputs": outputs, "inputs": inputs},
            attention={"queries": slots},
            weights={"buffers": count, "buffer_bytes": size},
            engine=None if base.engine is None else {"rows": inputs, "columns": outputs},
        )
        # What does not fit is never simulated: resources are a sum, a simulation plays every event.
        found = resources(network, made, policy, board)
        if found.shortfall(board):
            refused.append(found)
            continue
        ran = simulate(network, made, policy, frames, kind=kind)
        designs.append(Design(made, ran.ms / len(ran.frame_cycles), found, kind))
    if not designs:
        if not refused:
            raise UserError("the design search was given nothing to try")
        check_fits(min(refused, key=lambda one: sum(one.shortfall(board).values())), board)
    return DesignSearch(tuple(designs), tuple(pareto(designs)), len(refused))


def pareto(designs: Iterable[Design]) -> list[Design]:
    """The designs that no other beats or equals in all three costs, by latency; of equals the first."""
    front: list[Design] = []
    for design in sorted(designs, key=lambda one: one.costs):
        # In the order of costs a design can only be beaten by one that came before: latency, the first cost, never
        # falls.
        if not any(all(a <= b for a, b in zip(other.costs, design.costs, strict=True)) for other in front):
            front.append(design)
    return front
