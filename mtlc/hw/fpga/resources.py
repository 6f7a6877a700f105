"""Counts what an accelerator takes of a board: bytes on the chip by what they hold, DSP slices, blocks of memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mtlc.errors import UserError
from mtlc.hw.devices.catalogue import device
from mtlc.hw.fpga.accelerator import Accelerator, Policy
from mtlc.hw.fpga.schedule import PING_PONG
from mtlc.hw.routing.moe_vit_shape import MoeVit, expert_matrices
from mtlc.hw.rtl.engine import PARAMETER_BEATS, Engine, engine_for

PARAMETERS = ("weights", "vectors", "embedding", "gates")
"""The parts of `on_chip_bytes` that hold parameters: what the memory row of M³ViT's table counts."""
_BRAM_WORDS, _URAM_WORDS = 512, 4096


@dataclass(frozen=True)
class Board:
    """DSP slices, BRAM36 (36 Kib each) and URAM (288 Kib each) of a board."""

    name: str
    title: str
    dsp: int
    bram36: int
    uram: int


@dataclass(frozen=True)
class Resources:
    """What is needed; `bytes_on_chip` by what they hold. Adders, dividers, FIFOs and look-up tables are not counted."""

    dsp: int
    bram36: int
    uram: int
    bytes_on_chip: Mapping[str, int]

    @property
    def bram36_equivalent(self) -> int:
        """Blocks of 36 Kib, an URAM being eight."""
        return self.bram36 + 8 * self.uram

    def shortfall(self, board: Board) -> dict[str, int]:
        """By how much the board is too small, for each resource that it lacks."""
        needed = {"DSP": (self.dsp, board.dsp), "BRAM36": (self.bram36, board.bram36), "URAM": (self.uram, board.uram)}
        return {name: need - there for name, (need, there) in needed.items() if need > there}


def board(name: str | Path) -> Board:
    """The board of a device file: what its section ``[fpga]`` says; URAM may be absent.

    Raises `UserError` for an unknown device, or one that is no FPGA.
    """
    found = device(name)
    there = found.resources
    for key in ("dsp", "bram36"):
        if key not in there:
            raise UserError(f"device {str(name)!r}: its file has no [fpga.{key}], which an accelerator needs to know")
    return Board(found.name, found.title, there["dsp"], there["bram36"], there.get("uram", 0))


def on_chip_bytes(network: MoeVit, accelerator: Accelerator, policy: Policy, tasks: int = 1) -> dict[str, int]:
    """Bytes on the chip by what they hold.

    ``weights``: the buffers; experts that stay (``cache``, ``resident``) take the place of all buffers but one, and
    more if they need it. ``vectors``: norms and biases of one block. ``embedding``: patch embedding, positions and
    class token. ``gates``: one gate where they stream, all layers' of one task or of `tasks` otherwise. ``queues``: an
    index and a score of 16 bits for each place. ``activations``: tokens, their sums, queries, keys and values, unless
    they stay in DDR. ``token_memory``: the engine's, where there is one, with room for any frame.
    """
    shape = network.dense() if policy == "dense" else network
    held = {"dense": 0, "reordered": PING_PONG, "cache": accelerator.experts.cache, "resident": None}[policy]
    buffer, weights, vectors, queues = accelerator.weights.buffer_bytes, 0, 0, 0
    for block in shape.blocks:
        matrices = sum(o * i for o, i in expert_matrices(shape, block))
        biases = block.hidden + shape.width
        copies = 1 if not block.experts else block.stored if held is None else min(held, block.stored)
        vectors = max(vectors, 4 * shape.width + 3 * block.attention + shape.width + copies * biases)
        if block.experts and policy in ("cache", "resident"):
            weights = max(weights, buffer + copies * accelerator.weight_bytes(matrices))
        if policy == "reordered":
            queues = max(queues, shape.tokens * block.top_k * 4)
    gates = [shape.gate_parameters(block) for block in shape.moe_blocks]
    count = max(gates, default=0) if accelerator.gates == "streamed" else sum(gates)
    count *= tasks if accelerator.gates == "all_tasks" else 1
    widest = max(block.attention for block in shape.blocks)
    tokens = shape.tokens * (2 * shape.width + 3 * widest) * accelerator.bits.activations // 8
    engine = engine_of(shape, accelerator)
    if engine is not None:  # its banks, a column tile each
        buffer = max(buffer, (engine.k_max + PARAMETER_BEATS) * engine.columns)
    found = {
        "weights": max(weights, accelerator.weights.buffers * buffer),
        "vectors": accelerator.weight_bytes(vectors),
        "embedding": accelerator.weight_bytes(shape.embedding_parameters()),
        "gates": accelerator.weight_bytes(count),
        "queues": queues,
        "activations": 0 if accelerator.ddr.stream_keys else tokens,
    }
    return found if engine is None else {**found, "token_memory": engine.token_bytes}


def engine_of(network: MoeVit, accelerator: Accelerator) -> Engine | None:
    """The engine with memories for every linear layer of the network; None for an accelerator that has none."""
    if accelerator.engine is None:
        return None
    layers = [(network.tokens, 1, network.patch_inputs, network.width)]
    for block in network.blocks:
        layers += [
            (network.tokens, 1, network.width, block.attention),
            (network.tokens, max(1, block.top_k), network.width, block.hidden),
        ]  # fmt: skip
    return engine_for(accelerator.engine.rows, accelerator.engine.columns, layers)


def parameter_memory(network: MoeVit, accelerator: Accelerator, policy: Policy, tasks: int = 1) -> int:
    """Bytes of parameters on the chip, what M³ViT's table calls memory."""
    held = on_chip_bytes(network, accelerator, policy, tasks)
    return sum(held[part] for part in PARAMETERS)


def resources(
    network: MoeVit, accelerator: Accelerator, policy: Policy = "reordered", on: Board | None = None, tasks: int = 1
) -> Resources:
    """DSP slices and memory blocks on a board, by default the accelerator's own.

    A memory is as wide as the port that fills it and as deep as it must be, in blocks of 512 (BRAM36) or 4096 (URAM)
    words of 72 bits, 64 of them used. The largest go to URAM while there is any, those that a column of BRAM36 holds
    never.
    """
    target = on or board(accelerator.board)
    bits, port = accelerator.bits, accelerator.ddr.weight_port_bytes * 8
    dsp = accelerator.linear.macs * dsp_per_mac(bits.weights, bits.activations)
    if accelerator.engine is not None:
        # As yosys counts it: one for each element, two to requantise a column, one for addresses.
        dsp = accelerator.linear.macs + 2 * accelerator.engine.columns + 1
    attention = accelerator.attention.queries * accelerator.attention.inputs
    attention_dsp = attention * dsp_per_mac(bits.activations, bits.activations)
    held = on_chip_bytes(network, accelerator, policy, tasks)
    count = accelerator.weights.buffers
    parts = [held["weights"] // count] * count + [size for name, size in held.items() if name != "weights"]
    bram = uram = 0
    columns = -(-port // 64)
    for size in sorted(filter(None, parts), reverse=True):
        words = -(-size * 8 // (columns * 64))
        large = columns * -(-words // _URAM_WORDS)
        if words > _BRAM_WORDS and uram + large <= target.uram:
            uram += large
        else:
            bram += columns * -(-words // _BRAM_WORDS)
    total = max(dsp, attention_dsp) if accelerator.attention.shared else dsp + attention_dsp
    return Resources(math.ceil(total), bram, uram, held)


def dsp_per_mac(first_bits: int, second_bits: int) -> float:
    """DSP48E2 slices for a multiplier: half of one up to 8 × 8 bit, one up to 18 × 27, tiles of that beyond."""
    small, large = sorted((first_bits, second_bits))
    return 0.5 if large <= 8 else math.ceil(small / 18) * math.ceil(large / 27)


def check_fits(found: Resources, on: Board) -> None:
    """Raises `UserError` that says which resource of the board is exceeded, and by how much."""
    missing = found.shortfall(on)
    if missing:
        needed = {"DSP": found.dsp, "BRAM36": found.bram36, "URAM": found.uram}
        words = ", ".join(
            f"{needed[name]} {name} of {needed[name] - excess} ({excess} too many)" for name, excess in missing.items()
        )
        raise UserError(f"the accelerator does not fit {on.title}: it needs {words}")
