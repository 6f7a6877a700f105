"""Samples of which some have no label, for every loss and metric of mtlc, and what may stand in a label's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlc.tasks.task import TaskSpec

POSTPROCESS = {"kind": "detection", "size": [16, 16], "strides": [4], "names": ["cup", "pen"]}
NAN, SIZE = float("nan"), 6


def worst_pixel(output: Tensor, target: Tensor) -> Tensor:
    """A loss that falls over labels that are none."""
    assert bool(torch.isfinite(target).all())
    assert len(target)
    return (output - target).abs().amax()


TASKS = {
    "classes": TaskSpec("classes", "cross_entropy", "miou"),
    "hits": TaskSpec("hits", "cross_entropy", "accuracy", ignore=1),
    "depth": TaskSpec("depth", "l1", "rmse"),
    "value": TaskSpec("value", "mse", "mse"),
    "normals": TaskSpec("normals", "normals_l1", "mean_angle"),
    "edge": TaskSpec("edge", "balanced_bce", "odsf", metric_args={"tolerance": 0.2}),
    "mask": TaskSpec("mask", "edge_bce", "max_jaccard"),
    "boxes": TaskSpec("boxes", "simota", "map", postprocess=POSTPROCESS),
    "boxes50": TaskSpec("boxes50", "simota", "map_50", postprocess=POSTPROCESS),
    "own": TaskSpec("own", f"{__name__}:worst_pixel", "mse"),
}
"""A task for every loss and every metric of mtlc, and one with a loss of the user's own."""

CHANNELS = {"classes": 3, "hits": 3, "normals": 3}


def output_of(name: str, generator: torch.Generator) -> Tensor:
    """What a network says of one sample."""
    if name.startswith("boxes"):
        return torch.randn(16, 7, generator=generator)
    return torch.randn(CHANNELS.get(name, 1), SIZE, SIZE, generator=generator)


def label_of(name: str, generator: torch.Generator) -> Tensor:
    """A label of one sample, of which every loss and metric has a part that counts."""
    if name in ("classes", "hits"):
        label = torch.randint(0, 3, (SIZE, SIZE), generator=generator)
        label[0, 0] = 2
        return label
    if name.startswith("boxes"):
        low = torch.rand(1, 2, generator=generator) * 8
        return torch.cat([low, low + 4, torch.tensor([[1.0]])], 1).repeat(2, 1)
    values = torch.rand(CHANNELS.get(name, 1), SIZE, SIZE, generator=generator)
    if name in ("edge", "mask"):
        return (values > 0.7).float()
    return values + 0.1


def nothing_of(name: str) -> list[Any]:
    """What a sample may have in the place of a label: None is nothing, "absent" no entry at all."""
    shape = (CHANNELS.get(name, 1), SIZE, SIZE)
    found: list[Any] = ["absent", None]
    if name in ("classes", "hits"):
        return [*found, torch.full((SIZE, SIZE), 1 if name == "hits" else 255)]
    if name.startswith("boxes"):
        return [*found, torch.tensor([[0.0, 0.0, 0.0, 0.0, 255.0]])]
    found.append(torch.full(shape, NAN))
    if name in ("edge", "mask"):
        found.append(torch.full(shape, 255.0))
    if name in ("depth", "normals"):
        found.append(torch.zeros(shape))
    return found


class Listed:
    """A data set of samples that are ready."""

    def __init__(self, samples: Sequence[Mapping[str, Any]]) -> None:
        self.samples = list(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.samples[index])


def labelled(name: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Samples with the output of a network, ``"said"``, and a label of the task `name`."""
    generator = torch.Generator().manual_seed(seed)
    return [{"said": output_of(name, generator), name: label_of(name, generator)} for _ in range(count)]


def unlabelled(name: str, nothing: Any, seed: int) -> dict[str, Any]:
    """A sample with an output and no label."""
    sample = {"said": output_of(name, torch.Generator().manual_seed(seed))}
    return sample if isinstance(nothing, str) else {**sample, name: nothing}
