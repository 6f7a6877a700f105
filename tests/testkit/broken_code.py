"""A user's own code with a mistake in each callable: what jobs of `test_bad_input` name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtlc.evaluation.splits import Splits
from testkit.toy_job import Pictures, Toy, pictures


class Broken(Pictures):
    """Reads one sample well, and fails at a batch."""

    def __init__(self, mistake: str) -> None:
        super().__init__(8, 0)
        self.mistake = mistake

    def batch(self, indices):
        batch = super().batch(indices)
        if self.mistake == "arrays":
            return {key: value.numpy() for key, value in batch.items()}
        if len(indices) > 1:
            raise FileNotFoundError("7.png")
        return batch


class Plain:
    """Samples without ``batch``: of two sizes, or without an entry."""

    def __init__(self, mistake: str) -> None:
        self.mistake = mistake

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        size = 20 if self.mistake == "sizes" and index == 1 else 16
        sample = {"depth": torch.ones(1, size, size)} if self.mistake != "keys" or index != 3 else {}
        classes = torch.zeros(size, size, dtype=torch.long)
        return {"image": torch.ones(3, size, size), "depth": sample["depth"], "semseg": classes}


def raises() -> Splits:
    return Splits(*[Broken("raises")] * 3)


def arrays() -> Splits:
    return Splits(*[Broken("arrays")] * 3, identity="arrays")


def sizes() -> tuple:
    return (Plain("sizes"),) * 3


def keys() -> tuple:
    return (Plain("keys"),) * 3


def colour() -> Splits:
    splits = pictures()
    return Splits(splits.train, splits.calibration, splits.validation, {"colour": "RGB"})


def text() -> Splits:
    splits = pictures()
    return Splits(splits.train, splits.calibration, splits.validation, "imagenet")  # type: ignore[arg-type]


class SmallBatches(Toy):
    def forward(self, image: Tensor) -> dict[str, Tensor]:
        if len(image) > 4:
            raise RuntimeError("the batch is too large")
        return super().forward(image)


def small_batches() -> nn.Module:
    return SmallBatches(8)


def per_pixel(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).abs()


class Raises:
    higher_is_better, unit, kind = True, "", "scalar"

    def update(self, output: Tensor, target: Tensor) -> None:
        raise AttributeError("nothing")

    def compute(self) -> object:
        return 1.0

    def details(self) -> dict[str, float]:
        return {}


class Text(Raises):
    def update(self, output: Tensor, target: Tensor) -> None:
        pass

    def compute(self) -> object:
        return "high"


class Heatmap(Text):
    kind = "heatmap"


def raising_loss(output: Tensor, target: Tensor) -> Tensor:
    raise KeyError("scale")
