"""Lists a frame as the accelerator's controller sees it: steps in their order, and the loads of weights that they need.

The schedule says what waits for what; how long anything waits comes out of the simulation. Steps run one after another,
for each needs the one before. Loads go over one port in the order of the list; `after` names the step that must be over
before a load may start (a gate's decision, a buffer's last use), None where nothing but a free buffer is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np

from mtlc.errors import UserError
from mtlc.hw.fpga.accelerator import Accelerator, Policy
from mtlc.hw.fpga.lru_accesses import accesses
from mtlc.hw.routing.moe_vit_shape import Block, MoeVit, expert_matrices
from mtlc.hw.routing.routing_trace import Frame, Route, check_frame
from mtlc.hw.rtl.cycles import tile_times
from mtlc.hw.rtl.engine import PARAMETER_BEATS, Engine

Unit = Literal["linear", "attention", "vector", "gate"]
UNITS: tuple[Unit, ...] = ("linear", "attention", "vector", "gate")
PING_PONG = 2


@dataclass(frozen=True)
class Load:
    """`size` bytes for a step. `buffered`: it takes one of the weight buffers until a step frees it. `evicts` is the
    load whose place in the expert cache it takes.
    """

    frame: int
    layer: str
    name: str
    size: int
    after: int | None
    buffered: bool = True
    evicts: int | None = None


@dataclass(frozen=True)
class Stream:
    """Weights that come while the engine runs: over the port from `start` to `end`, on the chip until `read`, in cycles
    from the start of the step that has the stream.
    """

    name: str
    size: int
    start: int
    end: int
    read: int


@dataclass(frozen=True)
class Step:
    """`cycles` of work on a unit, once `load` is there; afterwards the loads in `frees` leave the chip.

    A run of the engine is a step for each of its tiles. `wait` are cycles in which the tile's weights are not there
    yet, and the first step has the `streams` of the whole run, which have the port for themselves.
    """

    frame: int
    layer: str
    name: str
    unit: Unit
    cycles: int
    load: int | None = None
    frees: tuple[int, ...] = ()
    activation_bytes: int = 0
    wait: int = 0
    streams: tuple[Stream, ...] = ()


@dataclass
class Schedule:
    """Steps and loads of frames in time. `last_step` ends each frame; `queue_places` is the most entries that all
    queues of a layer hold, `places` what the routes fill, of which `misses` load an expert; `wasted` experts were
    loaded in vain.
    """

    steps: list[Step] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    last_step: list[int] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    queue_places: int = 0
    misses: int = 0
    places: int = 0
    wasted: int = 0


def schedule(
    network: MoeVit, accelerator: Accelerator, policy: Policy, frames: Sequence[Frame], dense_frames: int = 1
) -> Schedule:
    """The schedule of `frames`. With policy ``dense`` the network's dense twin runs `dense_frames` times, whatever
    `frames` holds.

    Raises `UserError` for a frame of another network, for a policy that is unknown or not the accelerator's, one with
    experts on a network that has none, and a buffer that does not hold the weights of one output.
    """
    if policy not in get_args(Policy):
        raise UserError(f"policy = {policy!r}: must be one of {', '.join(get_args(Policy))}")
    if policy not in accelerator.policies:
        raise UserError(
            f"policy = {policy!r}: {accelerator.title} streams its weights and keeps no expert; use "
            f"{' or '.join(accelerator.policies)}"
        )
    if policy == "dense":
        shape, runs = network.dense(), [Frame("dense", ())] * dense_frames
    else:
        shape, runs = network, list(frames)
        if not network.moe_blocks:
            raise UserError(f"policy = {policy!r}: the network has no experts; use 'dense'")
        if not runs:
            raise UserError(f"policy = {policy!r}: give at least one frame of a routing trace")
        for frame in runs:
            check_frame(frame, network, frame.task)
    builder = _Builder(shape, accelerator, policy)
    for index, frame in enumerate(runs):
        builder.frame(index, frame)
    return builder.made


def expert_bytes(network: MoeVit, block: Block, accelerator: Accelerator) -> int:
    """Bytes of one expert: both matrices and both biases."""
    return accelerator.weight_bytes(sum(o * i + o for o, i in expert_matrices(network, block)))


class _Builder:
    """Appends frames to a schedule, layer by layer."""

    def __init__(self, network: MoeVit, accelerator: Accelerator, policy: Policy) -> None:
        self.network, self.hw, self.policy = network, accelerator, policy
        self.made = Schedule()
        self.index, self.layer = 0, ""
        self.last_experts: int | None = None
        self.gates: int | None = None

    def frame(self, index: int, frame: Frame) -> None:
        net, self.index, self.layer = self.network, index, "embed"
        # A frame begins with what a switch of tasks costs, if gates stay on the chip: the old task's give way to the
        # new one's.
        reload = None  # nothing starts before the task's gates are there
        if self.hw.gates == "current_task" and self.made.tasks[-1:] != [frame.task]:
            size = sum(self.hw.weight_bytes(net.gate_parameters(block)) for block in net.moe_blocks)
            if size:
                reload = self._load("gates of the task", size, self._now(), buffered=False, evicts=self.gates)
                self.gates = reload
        if self.hw.engine is not None:
            # A run of the engine has the port for itself, so the gates cannot come beside it: they get a step of their
            # own.
            if reload is not None:
                self._step("gates of the task", "gate", 0, reload)
            self._engine(("patch embedding",), net.patch_inputs, net.width, (net.tokens - 1,))
        else:
            cycles = self.hw.array.cycles(net.tokens - 1, net.width, net.patch_inputs)
            self._step("patch embedding", "linear", cycles, reload)
        routes = iter(frame.layers)
        for number, block in enumerate(net.blocks):
            self.layer = f"block {number}"
            self._attention(block)
            self._vector("norm2", net.tokens * net.width)
            if block.experts:
                self._experts(number, block, next(routes))
            else:
                self._perceptron(block)
            self._vector("residual sum", net.tokens * net.width)
        self.made.last_step.append(len(self.made.steps) - 1)
        self.made.tasks.append(frame.task)

    def _attention(self, block: Block) -> None:
        net, hw, tokens = self.network, self.hw, self.network.tokens
        # The block's norms come with its first matrix.
        norms = hw.weight_bytes(4 * net.width)
        self._vector("norm1", tokens * net.width)
        self._linear("qkv", tokens, 3 * block.attention, net.width, extra=norms)
        self._attend("query · key", block)
        if not hw.techniques.single_pass_softmax:
            # A maximum, a sum and a division pass instead of one: two more reads of every score, and an exp again.
            scores = tokens**2 * net.heads
            self._step("softmax passes", "vector", scores * (2 + hw.vector.function_cycles))
        self._attend("score · value", block)
        self._linear("projection", tokens, net.width, block.attention)
        self._vector("residual sum", tokens * net.width)

    def _attend(self, name: str, block: Block) -> None:
        hw, tokens = self.hw, self.network.tokens
        # A key that is on the array serves so many queries before the next one comes: ⌈N / queries⌉ passes over N keys,
        # each of ⌈width / inputs⌉ iterations.
        queries = hw.attention.queries if hw.techniques.attention_reorder else 1
        beats, moved = 1, 0
        iterations = -(-tokens // queries) * tokens * -(-block.attention // hw.attention.inputs)
        if hw.ddr.stream_keys:
            beat = -(-hw.attention.inputs * hw.bits.activations // 8)
            # An iteration takes as long as its part of the key takes to come over the port, one cycle at least.
            beats = max(1, -(-beat // hw.ddr.activation_port_bytes))
            moved = iterations * beat
        self._step(name, "attention", iterations * beats, activation_bytes=moved)

    def _perceptron(self, block: Block) -> None:
        (up, width), (down, hidden) = expert_matrices(self.network, block)
        tokens, hw = self.network.tokens, self.hw
        # Layer by layer: each matrix comes once and meets all tokens. Or both matrices fit a buffer and stay anyway.
        if hw.techniques.patch_reorder or hw.weight_bytes(2 * up * width) <= hw.weights.buffer_bytes:
            self._linear("fc1", tokens, up, width)
            self._gelu(tokens * hidden)
            self._linear("fc2", tokens, down, hidden)
            return
        for token in range(tokens):
            self._linear(f"fc1, token {token}", 1, up, width)
            self._gelu(hidden)
            self._linear(f"fc2, token {token}", 1, down, hidden)

    def _experts(self, number: int, block: Block, route: Route) -> None:
        """A layer of experts: the gate fills the queues, then the policy says in which order experts get their tokens.

            resident    load e0 e1 … eE │ all places, in any order
            cache       token 0: e3 (load), e5 (load) │ token 1: e5 (there), e2 (load) │ …
            reordered   load e0 │ queue of e0 │ queue of e1 │ …
                                │ load e1     │ load e2     │     the next expert comes while one computes

        `cache` goes by tokens, `reordered` by experts: so it loads each expert once, and has a queue for it to fill.
        """
        net, hw = self.network, self.hw
        route = block.by_rows(route)
        counts = np.bincount(route[route >= 0].ravel(), minlength=block.experts).tolist()
        active = [expert for expert, count in enumerate(counts) if count]
        # Two loads may come before the gate has spoken: its own weights, which no routing decides, and a guess at
        # expert 0.
        gate = first = None
        if hw.gates == "streamed":
            gate = self._load("gate", hw.weight_bytes(net.gate_parameters(number)), self._ahead(), buffered=False)
        if self.policy == "reordered" and hw.weights.prefetch_first_expert and self._whole(block):
            first = self._load("expert 0, ahead of the gate", expert_bytes(net, block, hw), None)
        per_token = hw.array.cycles(1, block.experts, net.gate_inputs) + 1  # and one to push the token to its queues
        # The guess was right if the first expert with tokens is expert 0. Otherwise its buffer is freed with this step.
        wasted = () if first is None or (active and active[0] == 0) else (first,)
        self._step("gate and queues", "gate", net.tokens * per_token, gate, wasted)
        self.made.wasted += len(wasted)
        self.made.places += sum(counts)
        self.made.queue_places = max(self.made.queue_places, sum(counts))
        if hw.engine is not None:
            self._on_engine(block, counts)
        elif self.policy == "reordered":
            self._expert_by_expert(block, counts, active, None if wasted else first)
        elif self.policy == "resident":
            self._all_resident(block, route)
        else:
            self._token_by_token(block, route)
        self.last_experts = self._now()

    def _expert_by_expert(self, block: Block, counts: Sequence[int], active: Sequence[int], first: int | None) -> None:
        # Places in the two buffers, and what each load waits for:
        #
        #     buffer a    e0 -- load after the gate       e2 -- load after e0 is over       e4 -- after e2
        #     buffer b         e1 -- load after the gate       e3 -- load after e1 is over
        #
        # `ends[i]` is the step that ends expert i, so expert i + 2 may load after it.
        gated = self._now()
        ends: list[int | None] = []
        for place, expert in enumerate(active):
            # Ping and pong: this expert's place is that of the expert before the last.
            freed = ends[place - PING_PONG] if place >= PING_PONG else gated
            if self._whole(block):
                size = expert_bytes(self.network, block, self.hw)
                load = first if first is not None and expert == 0 else self._load(f"expert {expert}", size, freed)
                self._work(f"expert {expert}", counts[expert], block, load, (load,))
            else:
                (up, width), (down, hidden) = expert_matrices(self.network, block)
                # Experts larger than a buffer are cut like any matrix; each part frees its buffer by itself.
                self._linear(f"expert {expert} fc1", counts[expert], up, width, after=gated)
                self._gelu(counts[expert] * hidden)
                self._linear(f"expert {expert} fc2", counts[expert], down, hidden, after=gated)
            ends.append(self._now())

    def _on_engine(self, block: Block, counts: Sequence[int]) -> None:
        """The engine's two runs: every expert's first matrix, then every expert's second."""
        for name, (outputs, inputs) in zip(("fc1", "fc2"), expert_matrices(self.network, block), strict=True):
            self._engine(tuple(f"expert {expert} {name}" for expert in range(len(counts))), inputs, outputs, counts)

    def _all_resident(self, block: Block, route: Route) -> None:
        size = expert_bytes(self.network, block, self.hw)
        loads = [self._load(f"expert {e}", size, self.last_experts, buffered=False) for e in range(block.stored)]
        # The port loads in order, so the last one's arrival says that all are there. They leave together: no token's
        # work is over before the last token's.
        self._work("experts", int((route >= 0).sum()), block, loads[-1], tuple(loads))

    def _token_by_token(self, block: Block, route: Route) -> None:
        size = expert_bytes(self.network, block, self.hw)
        # What the cache holds: by expert the load that brought it, since that is what leaves the chip when it is thrown
        # out. A token's miss is known only when its turn comes, so nothing is loaded ahead and every miss stalls.
        held: dict[int, int] = {}
        for access in accesses(route, self.hw.experts):
            load = None
            if not access.hit:
                evicted = None if access.evicted is None else held.pop(access.evicted)
                load = self._load(f"expert {access.expert}", size, self._now(), buffered=False, evicts=evicted)
                held[access.expert] = load
                self.made.misses += 1
            self._work(f"token {access.token}, expert {access.expert}", 1, block, load)
        if held:  # the next layer has other experts
            self.made.steps[-1] = replace(self.made.steps[-1], frees=tuple(held.values()))

    def _work(self, name: str, tokens: int, block: Block, load: int | None, frees: tuple[int, ...] = ()) -> None:
        """Both matrices of an expert on `tokens`."""
        first, second = (self.hw.array.cycles(tokens, o, i) for o, i in expert_matrices(self.network, block))
        if self.hw.techniques.gelu_table:
            self._step(name, "linear", first + second, load, frees)
            return
        self._step(f"{name} fc1", "linear", first, load)
        self._gelu(tokens * block.hidden)
        self._step(f"{name} fc2", "linear", second, None, frees)

    def _linear(
        self, name: str, tokens: int, outputs: int, inputs: int, extra: int = 0, after: int | None = None
    ) -> None:
        """A matrix, in as many parts as it takes to fit a buffer; `after` for loads that a gate decides on."""
        hw = self.hw
        if hw.engine is not None:
            self._engine((name,), inputs, outputs, (tokens,))
            return
        # Cut along the outputs: each part needs the whole of every token, and makes finished sums.
        rows = hw.weights.buffer_bytes // hw.weight_bytes(inputs)
        if not rows:
            raise UserError(
                f"[weights] buffer_bytes = {hw.weights.buffer_bytes}: {self.layer}, {name} needs "
                f"{hw.weight_bytes(inputs)} for the weights of one output"
            )
        for start in range(0, outputs, rows):
            part = min(rows, outputs - start)
            label = name if rows >= outputs else f"{name}, outputs {start} to {start + part - 1}"
            size = hw.weight_bytes(part * inputs + part) + (extra if start == 0 else 0)
            load = self._load(label, size, self._ahead() if after is None else after)
            self._step(label, "linear", hw.array.cycles(tokens, part, inputs), load, (load,))

    def _engine(self, names: Sequence[str], inputs: int, outputs: int, queues: Sequence[int]) -> None:
        """A run of the engine: one matrix (`outputs`, `inputs`) for each of `names` with its queue."""
        assert self.hw.engine is not None
        shape = Engine(self.hw.engine.rows, self.hw.engine.columns)
        tiles, taken = tile_times(shape, inputs, [outputs] * len(queues), queues, self.hw.ddr.weight_port_bytes)
        size = (inputs + PARAMETER_BEATS) * shape.columns
        labels = [f"{names[one.expert]}, tile {one.tile}" for one in tiles]
        streams = tuple(
            Stream(label, size, one.load, one.whole, one.end) for label, one in zip(labels, tiles, strict=True)
        )
        # Tiles' times count from the start of the run; a step for each, with what it waits for its weights before. The
        # first step carries the streams of all, because they belong to the run and not to a tile.
        now = 0
        for label, one in zip(labels, tiles, strict=True):
            self.made.steps.append(
                Step(
                    self.index, self.layer, label, "linear", one.end - one.start, wait=one.start - now, streams=streams
                )
            )
            now, streams = one.end, ()
        if tiles:
            # The last sums still climb out of the array when the last tile has had its last slot.
            self._step("drain", "linear", taken - now)

    def _gelu(self, elements: int) -> None:
        if not self.hw.techniques.gelu_table:
            self._step("GELU", "vector", elements * self.hw.vector.function_cycles)

    def _vector(self, name: str, elements: int) -> None:
        self._step(name, "vector", math.ceil(elements * self.hw.vector.cycles_per_element))

    def _whole(self, block: Block) -> bool:
        """Whether experts are loaded whole: both matrices in one buffer."""
        matrices = self.hw.weight_bytes(sum(o * i for o, i in expert_matrices(self.network, block)))
        return self.hw.weights.load_unit == "expert" and matrices <= self.hw.weights.buffer_bytes

    def _now(self) -> int | None:
        return len(self.made.steps) - 1 if self.made.steps else None

    def _ahead(self) -> int | None:
        """What a load that depends on nothing waits for."""
        return None if self.hw.weights.prefetch else self._now()

    def _load(self, name: str, size: int, after: int | None, buffered: bool = True, evicts: int | None = None) -> int:
        self.made.loads.append(Load(self.index, self.layer, name, size, after, buffered, evicts))
        return len(self.made.loads) - 1

    def _step(
        self, name: str, unit: Unit, cycles: int, load: int | None = None, frees: tuple[int, ...] = (),
        activation_bytes: int = 0,
    ) -> None:  # fmt: skip
        if cycles or load is not None or frees:
            # A gate's own load leaves with its step: it takes no buffer, but the occupancy counts it.
            if load is not None and not self.made.loads[load].buffered and unit == "gate":
                frees = (*frees, load)
            self.made.steps.append(Step(self.index, self.layer, name, unit, cycles, load, frees, activation_bytes))
