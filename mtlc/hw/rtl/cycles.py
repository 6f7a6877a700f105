"""Works out how long the engine takes from its schedule, without running the Verilog."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mtlc.hw.rtl.engine import PARAMETER_BEATS, Engine
from mtlc.hw.rtl.published_cycles import reordered_layer
from mtlc.hw.rtl.verilator import bandwidth_units


@dataclass(frozen=True)
class TileTime:
    """When a column tile of an expert is on the engine: its weights come from `load` to `whole`, its sums are made from
    `start` to `end`.
    """

    expert: int
    tile: int
    load: int
    whole: int
    start: int
    end: int


def cycles(
    engine: Engine, k: int, outputs: Sequence[int], queues: Sequence[int], bytes_per_cycle: float | None = None
) -> int:
    """Cycles from the first descriptor to the last row taken, if the results are always taken.

    `k`: features of a token; `outputs` and `queues`: for each expert the outputs of its layer and the places in its
    queue; `bytes_per_cycle`: the limit of the weight port, None for a beat of C bytes in every cycle.

    With R rows, C columns and w = max(2, ⌈K/R⌉), a row tile streams for P = R·w cycles, and a column tile of a queue of
    q places has m = ⌈q/R⌉ row tiles. Column tiles i = 0, 1, … of all queues that are not empty follow one another;
    their weights lie in bank i mod 2. In the cycles of the clock:

    - **load**: the first beat of tile i can be taken when tile i−1 was whole (cycle h[i−1] + 1, and one more for each
      empty queue between them) and the row tiles of i−2 have read the bank (after e[i−2]). Its K beats follow at the
      port's pace, C bytes each. The 7 beats of parameters wait until the sums of i−2 are requantised, 2R + C + 9 cycles
      after e[i−2]. h[i] is the cycle of the last of them.
    - **start**: s[i] = max(h[i] + 2, (start of the last row tile of i−1) + 2, e[i−1]): the bank is full, the issuer has
      fetched what it holds, and the row tile before has had its last slot.
    - **compute**: e[i] = s[i] + m·P, the cycle of its last slot.
    - **drain**: the row of the last place, number ρ = (q−1) mod R of its tile, is taken in cycle e + 2ρ + C + 13: 5 to
      reach the array, 3 in the element, 2ρ in the chain, C − 1 for the last column, 4 to requantise, 2 in the queue.

    Nothing else ever waits: row tiles follow without a gap because P is at least 2R, and the result queue of 8R rows
    has room for all that can be on its way. So this recurrence is exact, and it costs a few operations for each column
    tile.
    """
    return tile_times(engine, k, outputs, queues, bytes_per_cycle)[1]


def tile_times(
    engine: Engine, k: int, outputs: Sequence[int], queues: Sequence[int], bytes_per_cycle: float | None = None
) -> tuple[list[TileTime], int]:
    """The column tiles in their order, and what `cycles` gives: it explains both."""
    # The names of `cycles`' docstring: whole is h, last_start s of the last row tile, ends e, read[bank] and
    # drained[bank] are e[i−2] and the cycle in which its sums were requantised. −1 and −2 stand for "before the start".
    port = _Port(engine, bytes_per_cycle)
    stream = engine.rows * engine.words(k)
    whole = 0  # h of the tile before; the first descriptor is taken in cycle 0
    last_start, ends, read = -2, -1, [-1, -1]  # `read`: e of the tile that was in each bank
    drained = [-1, -1]
    bank = taken = 0
    tiles: list[TileTime] = []
    for expert, (n, queue) in enumerate(zip(outputs, queues, strict=True)):
        if not queue:
            # Its descriptor is taken and dropped, in a cycle of its own.
            whole += 1
            continue
        row_tiles = -(-queue // engine.rows)
        for tile in range(-(-n // engine.columns)):
            load = max(whole + 1, read[bank] + 1)
            # The weights, and then the parameters, which wait for the sums that still need the old ones.
            at = port.beats(load, k)
            whole = port.beats(max(at + 1, drained[bank] + 1), PARAMETER_BEATS)
            start = max(whole + 2, last_start + 2, ends)
            last_start = start + (row_tiles - 1) * stream
            ends = start + row_tiles * stream
            read[bank] = ends
            drained[bank] = ends + 2 * engine.rows + engine.columns + 9
            bank = 1 - bank
            tiles.append(TileTime(expert, tile, load, whole + 1, start, ends))
        taken = ends + 2 * ((queue - 1) % engine.rows) + engine.columns + 14
    return tiles, taken


def overlapped(
    engine: Engine, k: int, outputs: Sequence[int], queues: Sequence[int], bytes_per_cycle: float | None = None
) -> float:
    """The formula of the reordered expert layer, tile by tile: load₀ + Σ max(compute[i], load[i+1]) + drain, in cycles.

    The one that M³ViT's accelerator is described by. It knows the shape of the tiles and nothing of when a bank is
    free, of descriptors or of the pipeline; `cycles` does.
    """
    units = bandwidth_units(engine, bytes_per_cycle)
    load = (k + PARAMETER_BEATS) * engine.columns * 256 / units
    stream = engine.rows * engine.words(k)
    tiles = [
        -(-queue // engine.rows) * stream
        for n, queue in zip(outputs, queues, strict=True)
        if queue
        for _ in range(-(-n // engine.columns))
    ]
    if not tiles:
        return 0.0
    return reordered_layer(tiles, 1.0, load) + 2 * engine.rows + engine.columns + 12


class _Port:
    """The weight port at its limit: saves up a beat's bytes, offers the beat, and saves again once it was taken."""

    def __init__(self, engine: Engine, bytes_per_cycle: float | None) -> None:
        self.beat = engine.columns * 256
        self.units = bandwidth_units(engine, bytes_per_cycle)
        self.credit, self.next = self.beat, 0  # a beat is on offer from cycle `next` on

    def beats(self, start: int, count: int) -> int:
        """The cycle in which the last of `count` beats is taken, the first not before `start`."""
        # A whole beat in every cycle: there is always one on offer.
        if self.units >= self.beat:
            return start + count - 1
        first = max(start, self.next)
        # `credit` are the bytes saved up, in 1/256, when a beat is on offer: one beat's at least. A beat spends its
        # own, and only then is saved again, `units` a cycle. So waiting to be asked earns nothing:
        #
        #     credit  ≥ beat --taken--> credit − beat --+units--> … --> ≥ beat: the next one is on offer
        waits = self._cycles_until((count - 1) * self.beat)
        self.credit += waits * self.units - (count - 1) * self.beat
        last = first + waits
        # The last beat is spent as well: from here the port saves for whoever asks next.
        waits = self._cycles_until(self.beat)
        self.credit += waits * self.units - self.beat
        self.next = last + waits
        return last

    def _cycles_until(self, spent: int) -> int:
        """Cycles after a beat that is on offer until, `spent` later, another is."""
        return max(0, -(-(spent + self.beat - self.credit) // self.units))
