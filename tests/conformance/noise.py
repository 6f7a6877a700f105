"""Makes data of noise: pictures and labels of given shapes, the same each time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtlc.evaluation.splits import Splits

TRAIN, CALIBRATION, VALIDATION = 8, 6, 4


class Noise:
    """Samples of normal noise: a picture, and for each task a label of the shape of its output."""

    def __init__(self, count: int, seed: int, shape: Sequence[int], targets: Mapping[str, Sequence[int]]) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._tensors = {
            name: torch.randn(count, *sizes, generator=generator) for name, sizes in {"image": shape, **targets}.items()
        }
        self.identity = f"noise:{count}:{seed}:{list(shape)}:{sorted((k, list(v)) for k, v in targets.items())}"

    def __len__(self) -> int:
        return len(self._tensors["image"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in self._tensors.items()}

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return {name: tensor[list(indices)] for name, tensor in self._tensors.items()}


def splits(shape: Sequence[int], targets: Mapping[str, Sequence[int]]) -> Splits:
    """The three splits for inputs of `shape` and labels of the shapes `targets`, by task."""
    counts = (TRAIN, CALIBRATION, VALIDATION)
    return Splits(*(Noise(count, seed, shape, targets) for seed, count in enumerate(counts)))
