"""Reads and writes what is found on FPGA accelerators: simulated frames, what they take of a board, and better designs.

All times follow from a described accelerator and an assumed clock: nothing is measured on a board. `kind` says how far
to trust them: ``simulated`` with routing recorded from a network that ran, ``modelled`` with routing that was drawn.
"""

from __future__ import annotations

from typing import Literal

from mtlc.results.base import Result

Kind = Literal["modelled", "simulated"]


class Peaks(Result):
    """The most that was held at any time."""

    weight_bytes: int
    """Weights on the chip, in bytes."""
    weight_buffers: int
    """Weight buffers in use."""
    queue_places: int
    """Entries in all queues of one layer of experts."""


class BoardShare(Result):
    """How much of one resource is needed, and how much is there."""

    used: int | float
    """How many are needed; a block of memory of which half is needed counts 0.5 where yosys counts."""
    total: int | None
    """How many the board has; None where its device file does not say."""


class BoardUse(Result):
    """What an accelerator takes of a board under one policy."""

    board: str
    """Title of the board."""
    problem: str | None
    """Why it does not fit; None if it does."""
    bytes_on_chip: dict[str, int]
    """Bytes of memory on the chip, by what they hold."""
    dsp: BoardShare
    """DSP slices."""
    bram36: BoardShare
    """Blocks of 36 Kib."""
    uram: BoardShare
    """Blocks of 288 Kib."""


class PolicyCosts(Result):
    """What a frame costs under one policy: means over all frames of all tasks."""

    policy: str
    """How experts run: ``dense``, ``cache``, ``resident`` or ``reordered``."""
    kind: Kind
    """Where the routing is from: recorded (``simulated``) or drawn (``modelled``)."""
    frames: int
    """Frames that the means are over."""
    ms: float
    """Latency of a frame, in ms."""
    cycles: float
    """Latency of a frame, in cycles of the clock."""
    tasks_ms: dict[str, float]
    """Latency of a frame of each task, in ms."""
    parts_ms: dict[str, float]
    """Work of each unit (``linear``, ``attention``, ``vector``, ``gate``) in a frame, in ms. With `stall_ms` they add
    up to `ms`.
    """
    stall_ms: float
    """Time in which every unit waits for weights, in ms a frame."""
    ddr_port_ms: float
    """Time in which the weight port works, in ms a frame."""
    ddr_bytes: float
    """Weights that come from DDR, in bytes a frame."""
    streamed_bytes: float
    """Keys and values that come from DDR, in bytes a frame."""
    peak: Peaks
    """The most that any frame holds at a time."""
    miss_rate: float | None
    """Share of the places of the top-k that load an expert; None without an expert cache."""
    resources: BoardUse
    """What the design takes of the board."""


class TaskSwitch(Result):
    """What changing the task between frames costs: the worst of all pairs of tasks."""

    policy: str
    """The policy that was simulated."""
    pairs: int
    """Ordered pairs of tasks."""
    extra_cycles: int
    """Cycles of a frame after one of another task, less those after one of its own."""
    extra_bytes: int
    """Weights from DDR, in bytes, counted the same way."""


class SimulationResult(Result):
    """What `mtlc fpga simulate` prints with ``--json``."""

    kind: Kind
    """Where the routing is from: recorded (``simulated``) or drawn (``modelled``)."""
    network: str
    """The network that was asked for: a published name, a job or a checkpoint."""
    routing: str
    """Where tokens go, in words."""
    accelerator: str
    """Title of the accelerator."""
    clock_mhz: float
    """Its clock, in MHz."""
    clock: Literal["assumed"]
    """The clock is what the description says; no timing was closed."""
    board: str
    """Title of the board whose resources count."""
    policies: list[PolicyCosts]
    """A frame under each policy that ran."""
    left_out: dict[str, str]
    """Policies that did not run, and why."""
    switching: TaskSwitch | None
    """What changing the task costs; None for one task and for ``dense``."""
    timeline: str | None
    """The picture that was written."""
    chrome_trace: str | None
    """The trace for Perfetto that was written."""


class DesignResult(Result):
    """An accelerator on the Pareto front."""

    kind: Kind
    """Where the routing is from: recorded (``simulated``) or drawn (``modelled``)."""
    ms: float
    """Mean latency of a frame, in ms."""
    dsp: int
    """DSP slices."""
    bram36: int
    """Blocks of 36 Kib."""
    uram: int
    """Blocks of 288 Kib."""
    linear: list[int]
    """The linear array: outputs and inputs that it multiplies in a cycle."""
    queries: int
    """Queries that attention works on at a time."""
    buffers: int
    """Weight buffers."""
    buffer_bytes: int
    """Size of each, in bytes."""


class DesignSearchResult(Result):
    """What `mtlc fpga search` prints with ``--json``."""

    kind: Kind
    """Where the routing is from: recorded (``simulated``) or drawn (``modelled``)."""
    network: str
    """The network that was asked for."""
    routing: str
    """Where tokens go, in words."""
    accelerator: str
    """Title of the accelerator whose arrays and buffers were changed."""
    clock_mhz: float
    """The clock of all designs, in MHz."""
    clock: Literal["assumed"]
    """The clock is what the description says; no timing was closed."""
    board: str
    """Title of the board."""
    policy: str
    """How experts run."""
    tried: int
    """Designs that were tried."""
    too_large: int
    """Of these, how many the board cannot hold."""
    front: list[DesignResult]
    """The designs that no other beats in latency, DSP slices and memory, the fastest first."""
    picture: str | None
    """The picture that was written."""


class Timeline(Result):
    """A frame over time, in cycles; what lies too close to tell apart is joined."""

    task: str | None = None
    """The task of the frame; None where several were simulated."""
    kind: Kind
    """Where the routing is from: recorded (``simulated``) or drawn (``modelled``)."""
    policy: str
    """How experts run."""
    clock_mhz: float
    """Cycles per µs."""
    start: int
    """First cycle shown."""
    end: int
    """Last cycle shown."""
    bars: dict[str, list[tuple[int, int]]]
    """For each unit, the weight port (``ddr``) and waiting (``stall``): first and last cycle of each piece of work."""
    layers: list[tuple[str, int]]
    """The layers, and the cycle in which each ends."""
    weights: list[tuple[int, int]]
    """Cycle, and bytes of weights on the chip from then on."""


class FpgaSide(Result):
    """One network of a run, before or after compression."""

    policies: list[PolicyCosts]
    """A frame under each policy of the accelerator, whether the board holds it or not."""
    switching: TaskSwitch | None
    """What changing the task costs; None for one task."""


class FpgaComparison(Result):
    """The network of a run on one accelerator, before and after compression: an entry of ``fpga`` in
    ``results.json``.
    """

    device: str
    """Name of the device in the job."""
    board: str
    """Title of the board."""
    accelerator: str
    """Title of the accelerator."""
    clock_mhz: float
    """Its clock, in MHz."""
    clock: Literal["assumed"] = "assumed"
    """The clock is what the description says; no timing was closed."""
    kind: Kind
    """Where the routing is from: recorded (``simulated``) or drawn (``modelled``)."""
    routing: str | None = None
    """Where tokens go, in words."""
    before: FpgaSide
    """The original network, with the tasks that the compressed one has."""
    after: FpgaSide
    """The compressed network, on the same samples."""
    timeline: Timeline
    """One frame of the compressed network, run expert by expert."""


class SimulatedFrame(Result):
    """A frame of a simulation."""

    task: str
    """Its task."""
    cycles: int
    """Cycles from the end of the frame before to its own."""
    ms: float
    """The same in ms."""


class SimulatedBytes(Result):
    """What came from DDR in a simulation."""

    weights: int
    """Weights, in bytes."""
    keys_and_values: int
    """Keys and values, in bytes."""


class SimulatedLayer(Result):
    """A layer of one frame of a simulation."""

    frame: int
    """Number of the frame, from 0."""
    layer: str
    """``embed``, or ``block`` and its number."""
    cycles: int
    """Cycles from the end of the layer before to its own."""
    busy_cycles: dict[str, int]
    """Cycles that each unit and the port (``ddr``) worked."""
    stall_cycles: int
    """Cycles in which every unit waited for weights."""
    weight_bytes: int
    """Weights loaded for it, in bytes."""
    activation_bytes: int
    """Keys and values that streamed, in bytes."""


class SimulationFigures(Result):
    """All figures of one simulation, without the spans: what `Simulation.results` gives."""

    kind: Kind
    """Where the routing is from: recorded (``simulated``) or drawn (``modelled``)."""
    accelerator: str
    """Title of the accelerator."""
    clock_mhz: float
    """Its clock, in MHz."""
    policy: str
    """How experts run."""
    ms: float
    """All frames, in ms."""
    cycles: int
    """All frames, in cycles."""
    frames: list[SimulatedFrame]
    """Each frame."""
    stall_cycles: int
    """Cycles in which every unit waited for weights."""
    busy_cycles: dict[str, int]
    """Cycles that each unit and the port (``ddr``) worked."""
    ddr_bytes: SimulatedBytes
    """What came from DDR."""
    peak: Peaks
    """The most that was held at a time."""
    expert_places: int
    """Places of the top-k that are filled."""
    expert_misses: int
    """Of these, how many load an expert into the cache."""
    wasted_loads: int
    """Experts that were loaded in vain."""
    layers: list[SimulatedLayer]
    """Each layer of each frame."""
