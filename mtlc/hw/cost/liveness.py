"""Finds the peak activation memory of a straight sequence of operators, by liveness of their tensors.

A buffer lives from the step that writes it to the last step that reads it; results live to the end. An operator needs
its inputs and outputs at once, except that an element-wise one writes over an input of equal size that nobody reads
later, as runtimes do. The peak is the largest sum of live bytes; packing them without gaps is the allocator's affair.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One operator's use of buffers. `in_place` allows writing over a dying input of the same size."""

    reads: tuple[Hashable, ...]
    writes: tuple[Hashable, ...]
    in_place: bool = False


def needed(steps: Sequence[Step], results: Iterable[Hashable]) -> list[bool]:
    """For each step, whether a result depends on it: what a compiler's dead-code elimination keeps."""
    wanted = set(results)
    keep = [False] * len(steps)
    for index in range(len(steps) - 1, -1, -1):
        if not wanted.isdisjoint(steps[index].writes):
            keep[index] = True
            wanted.update(steps[index].reads)
    return keep


def peak_bytes(
    steps: Sequence[Step], sizes: Mapping[Hashable, int], inputs: Iterable[Hashable], results: Iterable[Hashable]
) -> int:
    """The maximum over `steps` of the bytes that are live.

    `sizes` gives the bytes of every activation buffer; buffers that it lacks (weights) are not counted. `inputs` are
    live from the start to their last use and are never written over: they are the caller's.
    """
    results, inputs = set(results), set(inputs)
    # Lifetimes over the steps; the peak is the fullest column, in bytes:
    #
    #     step        0 conv    1 relu    2 conv    3 add
    #     input       ======
    #     a           ================                         relu may write its result over a: `in_place`,
    #     b                     ==========================     unless a is read later
    #     c                               ================
    last: dict[Hashable, int] = {}
    for index, step in enumerate(steps):
        for buffer in (*step.reads, *step.writes):
            last[buffer] = index
    for buffer in results:
        last[buffer] = len(steps)
    live = {buffer for buffer in inputs if buffer in sizes}
    total = peak = sum(sizes[buffer] for buffer in live)
    for index, step in enumerate(steps):
        # An output that nobody reads (a pooling layer's indices) is never materialised by an exported graph.
        fresh = [b for b in step.writes if b in sizes and b not in live and last[b] > index]
        dying = {b for b in step.reads if b in live and last[b] == index}
        # While a step runs its inputs are still there beside its outputs: dying buffers go only afterwards.
        at_once = total + sum(sizes[b] for b in fresh)
        if step.in_place and fresh and any(sizes[b] == sizes[fresh[0]] for b in dying - inputs):
            at_once -= sizes[fresh[0]]
        peak = max(peak, at_once)
        live.update(fresh)
        live.difference_update(dying)
        total += sum(sizes[b] for b in fresh) - sum(sizes[b] for b in dying)
    return peak
