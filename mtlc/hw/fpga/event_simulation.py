"""Plays a schedule as a discrete-event simulation: what happens when, and what waits for weights.

There are two actors. The *port* loads weights in the order of the schedule, the *units* work off steps in theirs. A
step starts when the step before is over and its load is there; a load starts when the port is free, the step that it
comes after is over, and a buffer is free. So with two buffers, expert by expert (ping and pong):

    port   │load 0│load 1│······│load 2   │ load 3 …      ······ no free buffer
    units  ······│ expert 0     │expert 1│··│expert 2 …   ······ stall: its weights are not there
                                ↑
                 expert 0 is over: its buffer is free for load 2

Nothing else is modelled as waiting. Events are taken in the order of their cycles, and of their arrival within one.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mtlc.hw.fpga.accelerator import Accelerator, Policy
from mtlc.hw.fpga.schedule import UNITS, Load, Schedule, Step, schedule
from mtlc.hw.routing.moe_vit_shape import MoeVit
from mtlc.hw.routing.routing_trace import Frame
from mtlc.results.fpga import Kind, Peaks, SimulatedBytes, SimulatedFrame, SimulatedLayer, SimulationFigures


@dataclass(frozen=True)
class Span:
    """A unit's work (or the port's, unit ``ddr``) from cycle `start` to `end`, after `waited` cycles for weights."""

    frame: int
    layer: str
    name: str
    unit: str
    start: int
    end: int
    waited: int = 0
    size: int = 0


@dataclass(frozen=True)
class LayerCost:
    """A layer of one frame: cycles from the end of the layer before to its own end, and what they were spent on.

    `busy` is by unit, in cycles, `stall` the cycles in which every unit waited for weights, `ddr_bytes` the weights
    that were loaded for it, `activation_bytes` the keys and values that streamed.
    """

    frame: int
    layer: str
    cycles: int
    busy: dict[str, int]
    stall: int
    ddr_bytes: int
    activation_bytes: int


@dataclass(frozen=True)
class Simulation:
    """What a simulation found. Bytes are of weights over DDR; `peak_weight_bytes` of weights on the chip at once.

    `kind` is ``"simulated"`` where `frames` were recorded from a network, and ``"modelled"`` where routing was drawn.
    Only the linear layers of an accelerator with an ``[engine]`` were compared with RTL.
    """

    accelerator: Accelerator
    policy: Policy
    tasks: tuple[str, ...]
    frame_cycles: tuple[int, ...]
    spans: tuple[Span, ...]
    layers: tuple[LayerCost, ...]
    peak_weight_bytes: int
    peak_buffers: int
    queue_places: int
    places: int
    misses: int
    wasted_loads: int
    occupancy: tuple[tuple[int, int], ...]
    """(cycle, bytes of weights on the chip) at every change."""
    kind: Kind = "modelled"

    @property
    def cycles(self) -> int:
        """Cycles of all frames."""
        return sum(self.frame_cycles)

    @property
    def ms(self) -> float:
        """Milliseconds of all frames at the clock."""
        return self.accelerator.ms(self.cycles)

    @property
    def ddr_bytes(self) -> int:
        return sum(layer.ddr_bytes for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        return sum(layer.activation_bytes for layer in self.layers)

    @property
    def stall(self) -> int:
        """Cycles in which every unit waited for weights."""
        return sum(layer.stall for layer in self.layers)

    def busy(self, unit: str) -> int:
        """Cycles that a unit, or the port (``ddr``), worked."""
        return sum(layer.busy[unit] for layer in self.layers)

    def results(self) -> SimulationFigures:
        """All figures but the spans."""
        return SimulationFigures(
            kind=self.kind,
            accelerator=self.accelerator.title,
            clock_mhz=self.accelerator.clock_mhz,
            policy=self.policy,
            ms=self.ms,
            cycles=self.cycles,
            frames=[
                SimulatedFrame(task=task, cycles=cycles, ms=self.accelerator.ms(cycles))
                for task, cycles in zip(self.tasks, self.frame_cycles, strict=True)
            ],
            stall_cycles=self.stall,
            busy_cycles={unit: self.busy(unit) for unit in (*UNITS, "ddr")},
            ddr_bytes=SimulatedBytes(weights=self.ddr_bytes, keys_and_values=self.activation_bytes),
            peak=Peaks(
                weight_bytes=self.peak_weight_bytes, weight_buffers=self.peak_buffers, queue_places=self.queue_places
            ),
            expert_places=self.places,
            expert_misses=self.misses,
            wasted_loads=self.wasted_loads,
            layers=[
                SimulatedLayer(
                    frame=one.frame,
                    layer=one.layer,
                    cycles=one.cycles,
                    busy_cycles=one.busy,
                    stall_cycles=one.stall,
                    weight_bytes=one.ddr_bytes,
                    activation_bytes=one.activation_bytes,
                )
                for one in self.layers
            ],
        )


def simulate(
    network: MoeVit, accelerator: Accelerator, policy: Policy, frames: Sequence[Frame] = (), dense_frames: int = 1,
    kind: Kind = "modelled",
) -> Simulation:  # fmt: skip
    """Play `frames` of a routing trace one after another.

    ``dense`` needs none: it runs the dense twin of the network `dense_frames` times.

    The accelerator starts cold: the first frame waits for its first weights. `kind` is what the result is called: see
    `Simulation`. Raises `UserError` for frames of another network.
    """
    made = schedule(network, accelerator, policy, frames, dense_frames)
    return replace(_Player(made, accelerator).play(policy), kind=kind)


class _Player:
    """The state of both actors at the cycle of an event."""

    def __init__(self, made: Schedule, accelerator: Accelerator) -> None:
        self.made, self.hw = made, accelerator
        self.events: list[tuple[int, int, str, int]] = []  # cycle, order of arrival, what, which
        self.counter = 0
        self.next_load = self.next_step = self.done = 0
        self.port_free = self.unit_free = True
        self.there = [False] * len(made.loads)
        self.buffers = self.peak_buffers = self.held = self.peak_held = 0
        self.ready = 0  # when the step before ended
        # Invariants: `held` bytes and `buffers` count what was begun to load and has not left; loads and steps begin in
        # the schedule's order, so `next_load` and `next_step` say all about what has begun.
        self.spans: list[Span] = []
        self.occupancy: list[tuple[int, int]] = [(0, 0)]

    def play(self, policy: Policy) -> Simulation:
        self._start(0)
        # Between two events nothing changes, so after each event it is enough to look at the next load and the next
        # step.
        while self.events:
            now, _, what, index = heapq.heappop(self.events)
            if what == "loaded":
                self.there[index] = self.port_free = True
            elif what == "streamed":
                self.port_free = True
            else:
                self.unit_free, self.done, self.ready = True, index + 1, now
                for load in self.made.steps[index].frees:
                    self._free(load, now)
            self._start(now)
        if self.done != len(self.made.steps):
            # No event is left, but work is: a load waits for a step that waits for it.
            raise AssertionError("the schedule waits for a load that cannot start")
        return self._result(policy)

    def _start(self, now: int) -> None:
        """Begin whatever can begin at this cycle."""
        # The port first: a run of the engine may take it only when no load of the schedule can use it now.
        if self.port_free and self.next_load < len(self.made.loads):
            load = self.made.loads[self.next_load]
            room = not load.buffered or self.buffers < self.hw.weights.buffers
            if room and (load.after is None or self.done > load.after):
                self._begin_load(load, now)
        if self.unit_free and self.next_step < len(self.made.steps):
            step = self.made.steps[self.next_step]
            if (step.load is None or self.there[step.load]) and (self.port_free or not step.streams):
                self._begin_step(step, now)

    def _begin_load(self, load: Load, now: int) -> None:
        # What is thrown out goes before its successor comes: they share a place, and the peak must not count both.
        if load.evicts is not None:
            self._free(load.evicts, now)
        # The bytes count from the first cycle of the load: their place is taken, whatever has arrived.
        self.held += load.size
        self.occupancy.append((now, self.held))
        self.peak_held = max(self.peak_held, self.held)
        self.buffers += load.buffered
        self.peak_buffers = max(self.peak_buffers, self.buffers)
        end = now + self.hw.load_cycles(load.size)
        self.spans.append(Span(load.frame, load.layer, load.name, "ddr", now, end, size=load.size))
        self._at(end, "loaded", self.next_load)
        self.next_load, self.port_free = self.next_load + 1, False

    def _begin_step(self, step: Step, now: int) -> None:
        if step.streams:
            self._stream(step, now)
        begin = now + step.wait
        # Since the step before ended every unit stood still: steps run one at a time.
        end, waited = begin + step.cycles, begin - self.ready
        self.spans.append(Span(step.frame, step.layer, step.name, step.unit, begin, end, waited, step.activation_bytes))
        self._at(end, "done", self.next_step)
        self.next_step, self.unit_free = self.next_step + 1, False

    def _stream(self, step: Step, now: int) -> None:
        """The run's weights, of which the engine holds two tiles; nothing else comes to the chip meanwhile."""
        changes = []
        for one in step.streams:
            self.spans.append(
                Span(step.frame, step.layer, one.name, "ddr", now + one.start, now + one.end, size=one.size)
            )
            changes += [(now + one.start, one.size), (now + one.read, -one.size)]
        # Written down ahead, which is safe: the port is taken until the last of these streams ends, so no load comes
        # between. Of one cycle's changes those that free come first, having the smaller number.
        for cycle, size in sorted(changes):
            self.held += size
            self.occupancy.append((cycle, self.held))
            self.peak_held = max(self.peak_held, self.held)
        self.port_free = False
        self._at(now + step.streams[-1].end, "streamed", 0)

    def _free(self, index: int, now: int) -> None:
        self.held -= self.made.loads[index].size
        self.occupancy.append((now, self.held))
        self.buffers -= self.made.loads[index].buffered

    def _at(self, cycle: int, what: str, index: int) -> None:
        heapq.heappush(self.events, (cycle, self.counter, what, index))
        self.counter += 1

    def _result(self, policy: Policy) -> Simulation:
        steps = [span for span in self.spans if span.unit != "ddr"]
        ends = [steps[index].end for index in self.made.last_step]
        frame_cycles = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        return Simulation(
            self.hw, policy, tuple(self.made.tasks), tuple(frame_cycles), tuple(self.spans), tuple(self._layers()),
            self.peak_held, self.peak_buffers, self.made.queue_places, self.made.places, self.made.misses,
            self.made.wasted, tuple(self.occupancy),
        )  # fmt: skip

    def _layers(self) -> list[LayerCost]:
        grouped: dict[tuple[int, str], list[Span]] = {}
        for span in self.spans:
            grouped.setdefault((span.frame, span.layer), []).append(span)
        found, before = [], 0
        for frame, layer in dict.fromkeys((step.frame, step.layer) for step in self.made.steps):
            spans = grouped[frame, layer]
            work = [span for span in spans if span.unit != "ddr"]
            end = work[-1].end
            # By the layer that the work is for: a load that comes early counts for the layer that waited for it.
            busy = {u: sum(s.end - s.start for s in spans if s.unit == u) for u in (*UNITS, "ddr")}
            found.append(
                LayerCost(
                    frame, layer, end - before, busy, sum(span.waited for span in work),
                    sum(span.size for span in spans if span.unit == "ddr"), sum(span.size for span in work),
                )
            )  # fmt: skip
            before = end
        return found
