"""Small pictures of discs and boxes with two tasks, and a network for them: what the notebooks work on.

A module, so that a finished step of a notebook is found again: see "Saving and loading" in docs/python.md.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

SIDE = 32


class Shapes(Dataset):
    """`count` pictures (3, 32, 32): what each pixel shows (0 nothing, 1 a disc, 2 a box), and how far away it is."""

    def __init__(self, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.samples = [_sample(rng) for _ in range(count)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.samples[index]


def _sample(rng: np.random.Generator) -> dict[str, Tensor]:
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    picture = np.stack([0.3 + 0.2 * x, 0.3 + 0.2 * y, 0.4 + 0 * x])
    classes, depth = np.zeros((SIDE, SIDE), np.int64), 2.0 + y
    for far in np.sort(rng.uniform(0.4, 1.8, 4))[::-1]:  # the nearest is painted last
        kind, centre, size = rng.integers(1, 3), rng.uniform(0.15, 0.85, 2), 0.16 / far
        dy, dx = np.abs(y - centre[0]), np.abs(x - centre[1])
        inside = dy**2 + dx**2 < size**2 if kind == 1 else np.maximum(dy, dx) < size
        colour = rng.uniform(0.2, 1.0, 3)[:, None] / (0.6 + 0.5 * far)
        picture[:, inside], classes[inside], depth[inside] = colour, kind, far
    picture += rng.normal(0, 0.03, picture.shape)
    return {
        "image": torch.from_numpy(picture.astype(np.float32)),
        "semseg": torch.from_numpy(classes),
        "depth": torch.from_numpy(depth.astype(np.float32))[None],
    }


class Block(nn.Module):
    """Two convolutions beside a short cut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.short = nn.Conv2d(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(inner + self.short(x))


class Net(nn.Module):
    """An encoder that both tasks share, and a head for each."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Sequential(Block(3, width, 1), Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.heads = nn.ModuleDict({"semseg": _head(2 * width, 3), "depth": _head(2 * width, 1)})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        found = self.encoder(image)
        return {task: head(found) for task, head in self.heads.items()}


def _head(before: int, after: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, after, 1),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
    )  # fmt: skip


def train(model: nn.Module, data: Dataset, epochs: int, lr: float = 3e-3) -> nn.Module:
    """A plain training loop: yours will be another."""
    torch.manual_seed(0)
    loader: Iterable[dict[str, Tensor]] = DataLoader(data, 32, shuffle=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, epochs * len(loader))
    model.train()
    for _ in range(epochs):
        for batch in loader:
            outputs = model(batch["image"])
            loss = nn.functional.cross_entropy(outputs["semseg"], batch["semseg"])
            loss = loss + nn.functional.l1_loss(outputs["depth"], batch["depth"])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()
