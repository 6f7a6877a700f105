"""Describes the shape of a mixture-of-experts vision transformer: what its time depends on beside the routing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlc.errors import UserError

if TYPE_CHECKING:
    from mtlc.program.program import Program


@dataclass(frozen=True)
class Block:
    """A block: the width of its attention (heads × head width), and the hidden width of its perceptron or of each
    expert.

    `experts` 0 is a perceptron. Otherwise a token goes to `top_k` of so many experts. `rows` gives for each of them the
    one whose parameters it has, −1 for none: experts that were dropped or merged. Empty: each has its own.
    """

    attention: int
    hidden: int
    experts: int = 0
    top_k: int = 0
    rows: tuple[int, ...] = ()

    @property
    def stored(self) -> int:
        """Experts with parameters."""
        return len({row for row in self.rows if row >= 0}) if self.rows else self.experts

    def by_rows(self, route: np.ndarray) -> np.ndarray:
        """A route (N, K) of the router's experts as one of those with parameters: merged ones take a token once."""
        if not self.rows:
            return route
        rows = np.where(route >= 0, np.asarray(self.rows, np.int64)[route], -1)
        # Of places that name one row, the first keeps the token.
        for place in range(1, rows.shape[1]):
            again = (rows[:, :place] == rows[:, place, None]).any(1)
            rows[again, place] = -1
        return rows


@dataclass(frozen=True)
class MoeVit:
    """`tokens` count the class token; `patch_inputs` is 3 · patch²; `gate_inputs` is D, or D + 64 in conditioned gates.

    `path` names the layers as the network does, and is empty for a shape alone.
    """

    tokens: int
    width: int
    heads: int
    patch_inputs: int
    blocks: tuple[Block, ...]
    gate_inputs: int
    path: tuple[str, ...] = ()

    @property
    def moe_blocks(self) -> tuple[int, ...]:
        """The blocks that have experts."""
        return tuple(index for index, block in enumerate(self.blocks) if block.experts)

    def dense(self) -> MoeVit:
        """The network with a perceptron of the same MACs, `top_k` · hidden wide, in place of the experts."""
        blocks = tuple(Block(b.attention, b.hidden * b.top_k) if b.experts else b for b in self.blocks)
        return replace(self, blocks=blocks, path=())

    def macs(self) -> int:
        """MACs of the encoder with both products of attention, and of the gates; every place of the top-k is filled."""
        total = (self.tokens - 1) * self.patch_inputs * self.width
        for block in self.blocks:
            # q, k, v and the projection; then both products of attention over all heads; the two matrices; the gate.
            total += self.tokens * 4 * block.attention * self.width + 2 * self.tokens**2 * block.attention
            total += self.tokens * 2 * block.hidden * self.width * max(1, block.top_k)
            total += self.tokens * self.gate_inputs * block.experts
        return total

    def gate_parameters(self, block: int) -> int:
        """Weights of one task's gate."""
        return self.gate_inputs * self.blocks[block].experts

    def embedding_parameters(self) -> int:
        """Patch embedding with its bias, positions and the class token."""
        return self.patch_inputs * self.width + self.width + self.tokens * self.width + self.width


def moe_vit(
    image_size: tuple[int, int], width: int, heads: int, blocks: int = 12, patch: int = 16, experts: int = 16,
    top_k: int = 4, expert_width: int | None = None, dense_ratio: int = 4, every: int = 2,
) -> MoeVit:  # fmt: skip
    """M³ViT's shape: experts in the last of every `every` blocks, perceptrons of `dense_ratio` · D elsewhere.

    Raises `UserError` for shapes that no network can have.
    """
    height, across = image_size
    if min(height, across, patch, width, heads, blocks, experts, every) < 1 or height % patch or across % patch:
        raise UserError(f"image_size = {image_size}: must be positive multiples of the patch, {patch}")
    if width % heads:
        raise UserError(f"heads = {heads} does not divide the width {width}")
    if not 1 <= top_k <= experts:
        raise UserError(f"top_k = {top_k}: must lie between 1 and the number of experts, {experts}")
    made = tuple(
        Block(width, expert_width or width, experts, top_k)
        if index % every == every - 1
        else Block(width, dense_ratio * width)
        for index in range(blocks)
    )
    tokens = height // patch * (across // patch) + 1
    return MoeVit(tokens, width, heads, 3 * patch**2, made, width)


PUBLISHED = {
    "pascal-small": moe_vit((512, 512), 384, 12),
    "nyud-small": moe_vit((480, 640), 384, 12),
    "cityscapes-tiny": moe_vit((128, 256), 192, 3, top_k=2, expert_width=384),
}
"""The networks of M³ViT's hardware table, and Edge-MoE's."""


def from_program(program: Program) -> MoeVit:
    """The shape of a program whose network is the zoo's `m3vit`, pruned or extracted as it may be.

    Raises `UserError` for any other network.
    """
    from mtlc.moe.layers import moe_layers

    backbone: Any = getattr(program.module, "backbone", None)
    parts = ("patch_embed", "pos_embed", "blocks")
    if backbone is None or not all(hasattr(backbone, part) for part in parts):
        raise UserError(
            f"[model] {type(program.module).__name__}: the accelerator's model knows networks of mtlc.zoo:m3vit only"
        )
    layers = {layer.path: layer for layer in moe_layers(program.module)}
    blocks, paths, gate_inputs, heads = [], [], backbone.pos_embed.shape[-1], 1
    for index, block in enumerate(backbone.blocks):
        attention = block.attn.proj.in_features
        heads = attention // block.attn.head_width
        layer = layers.get(f"backbone.blocks.{index}.mlp")
        if layer is None:
            blocks.append(Block(attention, block.mlp.fc1.out_features))
            continue
        hidden = next(p for p in layer.inner.parameters() if p.ndim == 3).shape[1]
        gate_inputs = next(layer.router.parameters()).shape[-2]
        rows = tuple(layer.position.tolist())
        own = rows == tuple(range(layer.count))
        blocks.append(Block(attention, hidden, layer.count, layer.top_k, () if own else rows))
        paths.append(layer.path)
    tokens, width = backbone.pos_embed.shape[-2:]
    return MoeVit(
        tokens, width, heads, backbone.patch_embed.weight[0].numel(), tuple(blocks), gate_inputs, tuple(paths)
    )


def expert_matrices(network: MoeVit, block: Block) -> Sequence[tuple[int, int]]:
    """(outputs, inputs) of the two layers of a perceptron or an expert."""
    return (block.hidden, network.width), (network.width, block.hidden)
