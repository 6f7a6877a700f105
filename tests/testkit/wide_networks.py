"""Small networks of two tasks: each holds one thing that a width must get right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.compress.slimmable.layer_places import survey
from mtlc.compress.slimmable.supernet import Supernet, without_failing
from mtlc.compress.slimmable.width_table import WidthTable, build_table
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec
from testkit import tiny_networks

TASKS = (TaskSpec("depth", "mse", "mse"), TaskSpec("semseg", "mse", "mse"))
WIDTHS = (0.25, 0.5, 1.0)


class Heads(nn.Module):
    """Features (N, C, h, w) → a hidden map of 16 channels per task, and its output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for task, channels in tiny_networks.OUTPUTS.items():
            hidden = nn.Conv2d(width, 16, 3, padding=1, bias=False)
            self.add_module(task, nn.Sequential(hidden, nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, channels, 1)))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {task: head(features) for task, head in self.named_children()}


class ConvNeXt(nn.Module):
    """A depth-wise convolution, a layer norm and a perceptron on channels last, and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 2, 2)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.norm = nn.LayerNorm(32)
        self.wide, self.narrow = nn.Linear(32, 64), nn.Linear(64, 32)
        self.heads = Heads(32)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.stem(image)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return self.heads(x + self.narrow(F.gelu(self.wide(y))).permute(0, 3, 1, 2))


class Grouped(nn.Module):
    """A convolution of four groups between two plain ones, and a shortcut around them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16))
        self.squeeze = nn.Conv2d(16, 32, 1)
        self.grouped = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=4), nn.BatchNorm2d(32), nn.PReLU(32))
        self.expand = nn.Conv2d(32, 16, 1)
        self.heads = Heads(16)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.stem(image))
        return self.heads(x + self.expand(self.grouped(F.relu(self.squeeze(x)))))


class Concat(nn.Module):
    """A stem beside what a deeper, coarser layer gives back: what reads both loses channels in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.PReLU(16))
        self.deep = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.InstanceNorm2d(32, affine=True), nn.PReLU())
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.join = nn.Sequential(nn.Conv2d(32, 24, 3, padding=1), nn.GroupNorm(4, 24), nn.ReLU())
        self.heads = Heads(24)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.down(image)
        return self.heads(self.join(torch.cat([x, self.up(self.deep(x))], 1)))


class SegFormer(nn.Module):
    """Of `transformers`: two stages with attention, the first with one head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = tiny_networks.segformer()
        self.heads = Heads(32)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.heads(self.backbone(image).last_hidden_state)


def m3vit() -> nn.Module:
    """Its experts, heads and routers have weights so large that each of them shows in the outputs."""
    from mtlc.zoo.m3vit import m3vit as made

    network = made(
        size="micro", width=48, heads=3, blocks=4, experts=4, top_k=2, head_width=16, image_size=[16, 16], patch=4,
        tasks=tiny_networks.OUTPUTS,
    )  # fmt: skip
    for name, parameter in network.named_parameters():
        if name.startswith("backbone"):
            nn.init.normal_(parameter, std=0.15)
    return network


FACTORIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet": (tiny_networks.resnet, 32), "m3vit": (m3vit, 16), "convnext": (ConvNeXt, 8), "grouped": (Grouped, 8),
    "concat": (Concat, 8), "segformer": (SegFormer, 32),
}  # fmt: skip
NETWORKS = tuple(FACTORIES)


def build(network: str) -> nn.Module:
    torch.manual_seed(3)
    return tiny_networks.random_norms(FACTORIES[network][0]()).eval()


def program_of(network: str) -> Program:
    """The program of one of `NETWORKS`."""
    source = ModelSource("testkit.wide_networks:build", {"network": network})
    example = {"image": tiny_networks.images(2, FACTORIES[network][1], 4)}
    return Program(source.build(), TASKS, example, source)


def table_of(
    program: Program, widths: Sequence[float] = WIDTHS, round_to: int = 8, stages=None, ignore: Sequence[str] = ()
) -> WidthTable:
    """The table as the pass `slim` makes it."""
    example = program.example_inputs()
    groups = ChannelGroups(program.module, example, ignore)
    units = [unit for unit in groups.units if unit.by_layers]
    table = build_table(units, survey(program), program.task_names, tuple(widths), round_to, stages, groups.left_alone)
    return without_failing(Supernet(program, table))


@cache
def supernet_of(network: str, round_to: int = 8) -> Supernet:
    """Shared between tests, which leave it as it is."""
    program = program_of(network)
    return Supernet(program, table_of(program, round_to=round_to))


def fresh(network: str) -> Supernet:
    """A supernet that a test may change."""
    shared = supernet_of(network)
    return Supernet(shared.program.clone(), shared.table)
