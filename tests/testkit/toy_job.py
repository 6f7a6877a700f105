"""A job small enough for tests: a network of three convolutions, two tasks, 16 px images, and a text for ``job.toml``.

image (N, 3, 16, 16) ── stem ── body ─┬─ depth (N, 1, 16, 16)
                                      └─ semseg (N, 3, 16, 16)
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from mtlc.evaluation.splits import Splits


class Toy(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.depth = nn.Conv2d(width, 1, 1)
        self.semseg = nn.Conv2d(width, 3, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.body(self.stem(image))
        return {"depth": self.depth(features), "semseg": self.semseg(features)}


class Pictures:
    """Random pictures; depth is 1 + their brightness, the class is the brightest channel."""

    def __init__(self, count: int, seed: int, broken: str = "") -> None:
        self.images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        self.broken = broken
        self.identity = f"pictures:{count}:{seed}:{broken}"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.batch([index]).items()}

    def batch(self, indices) -> dict[str, Tensor]:
        images = self.images[list(indices)]
        depth = 1 + images.mean(1, keepdim=True)
        if self.broken == "labels":
            depth = torch.full_like(depth, float("nan"))
        if self.broken == "images":
            images = torch.full_like(images, float("nan"))
        return {"image": images, "depth": depth, "semseg": images.argmax(1)}


def net(width: int = 8) -> nn.Module:
    return Toy(width)


def raises(**kwargs) -> nn.Module:
    raise RuntimeError("no such\ncheckpoint")


class LeavesTorch(Toy):
    """Its forward goes through numpy."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        outputs = super().forward(torch.from_numpy(image.detach().numpy()))
        return {name: torch.from_numpy(output.detach().numpy()) for name, output in outputs.items()}


class Untraceable(Toy):
    """Its forward makes no gradients, so there is no graph to follow."""

    @torch.no_grad()
    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return super().forward(image)


def leaves_torch(width: int = 8) -> nn.Module:
    return LeavesTorch(width)


def untraceable(width: int = 8) -> nn.Module:
    return Untraceable(width)


def pictures(train: int = 32, calibration: int = 8, validation: int = 8, broken: str = "") -> Splits:
    return Splits(
        Pictures(train, 0),
        Pictures(calibration, 1),
        Pictures(validation, 2, broken),
        {"scale": 1 / 255, "mean": [0.0], "std": [1.0], "color": "RGB", "layout": "NCHW"},
    )


def nan_training() -> Splits:
    """Class scores cannot be masked away: training on such pictures gives no number."""
    return Splits(Pictures(32, 0, "images"), Pictures(8, 1), Pictures(8, 2))


JOB = """\
schema = 1
[model]
factory = "testkit.toy_job:net"
[tasks.depth]
loss = "l1"
metric = "rmse"
[tasks.semseg]
loss = "cross_entropy"
metric = "miou"
[data]
factory = "testkit.toy_job:pictures"
"""


def write(folder: Path, text: str = JOB, *more: str) -> Path:
    """``job.toml`` in `folder`, with `more` sections after `text`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "job.toml"
    path.write_text(text + "".join(more))
    return path
