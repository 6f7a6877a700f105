"""Small networks whose costs can be worked out by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec


def program(
    module: nn.Module, *inputs: Tensor, outputs: tuple[str, ...] = ("",), ignored: tuple[str, ...] = ()
) -> Program:
    """A program around `module`; a task is called after its output, or "task" where the module returns one tensor."""
    tasks = tuple(TaskSpec(output or "task", "l1", "rmse", output=output) for output in outputs)
    example = {f"input{index}": value for index, value in enumerate(inputs)}
    return Program(module, tasks, example, ModelSource("tests:none"), ignored_outputs=ignored)


def randomized(module: nn.Module) -> nn.Module:
    """No two parameters or statistics alike, none zero: an exporter may drop zeros and merge equal tensors."""
    generator = torch.Generator().manual_seed(0)
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape, generator=generator) + 0.5
    return module


class MLP(nn.Module):
    """(N, 6) → (N, 3): 6·16 + 16·3 MACs."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 16)
        self.down = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """(N, 3, 32, 32) → {"label": (N, 7), "angle": (N, 1)}: 16 tokens of width 32, two blocks of four heads."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 8, 8)
        self.position = nn.Parameter(torch.randn(1, 16, 32))
        self.blocks = nn.Sequential(Block(32, 4), Block(32, 4))
        self.label, self.angle = nn.Linear(32, 7), nn.Linear(32, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.patch(image).flatten(2).transpose(1, 2) + self.position
        x = self.blocks(x).mean(1)
        return {"label": self.label(x), "angle": self.angle(x)}


VIT_BLOCK_MACS = 16 * (32 * 96 + 32 * 32 + 2 * 32 * 64) + 2 * 4 * 16 * 16 * 8
VIT_MACS = 16 * 3 * 8 * 8 * 32 + 2 * VIT_BLOCK_MACS + 32 * 7 + 32 * 1
