"""Draws samples of given shapes: data to try a job with before there are any.

What is learnt from them is nothing: a job on them shows that the network, the tasks and the passes fit together, what
the network costs and how fast it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlc.errors import UserError, nearest
from mtlc.evaluation.splits import Splits

KINDS = ("boxes", "classes", "binary", "normals", "numbers")
"""What a label may be."""
_KEYS = ("kind", "shape", "classes", "size")


def random_samples(
    inputs: Mapping[str, Sequence[int]], labels: Mapping[str, Mapping[str, Any]], train: int = 64, val: int = 16
) -> Splits:
    """Splits of `train`, `val` and `val` samples.

    `inputs` are shapes by name, of normal numbers; an input of int64 is ``{"shape": [77], "below": 1000}``. A label is
    a table of its `kind`, one of `KINDS`, and `shape`: with ``classes``, the number of classes of it; of ``boxes``,
    also the ``size`` [H, W] of the picture, and no shape.
    """
    for name, label in labels.items():
        for key in label:
            if key not in _KEYS:
                raise UserError(f"labels.{name} has {key!r}{nearest(key, _KEYS)}")
        if label.get("kind") not in KINDS:
            raise UserError(f"labels.{name}.kind = {label.get('kind')!r}: must be one of {', '.join(KINDS)}")
    one, two, three = (_Drawn(inputs, labels, count, seed) for seed, count in enumerate((train, val, val)))
    return Splits(one, two, three)


class _Drawn:
    """Samples that follow from their number alone."""

    def __init__(
        self, inputs: Mapping[str, Any], labels: Mapping[str, Mapping[str, Any]], count: int, seed: int
    ) -> None:
        self._inputs, self._labels, self._count, self._seed = inputs, labels, count, seed
        self.identity = f"random:{seed}:{count}:{json.dumps([inputs, labels], sort_keys=True, default=list)}"

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self._count:
            raise IndexError(index)
        draw = torch.Generator().manual_seed(1_000_003 * self._seed + index)
        found = {name: _input(shape, draw) for name, shape in self._inputs.items()}
        return found | {name: _label(label, draw) for name, label in self._labels.items()}


def _input(shape: Any, draw: torch.Generator) -> Tensor:
    if isinstance(shape, Mapping):
        return torch.randint(0, int(shape["below"]), tuple(shape["shape"]), generator=draw)
    return torch.randn(tuple(shape), generator=draw)


def _label(label: Mapping[str, Any], draw: torch.Generator) -> Tensor:
    kind, shape = label["kind"], tuple(label.get("shape", ()))
    if kind == "classes":
        return torch.randint(0, int(label["classes"]), shape, generator=draw)
    if kind == "binary":
        return (torch.rand(shape, generator=draw) < 0.3).float()
    if kind == "normals":
        return torch.nn.functional.normalize(torch.randn(shape, generator=draw), dim=0)
    if kind == "boxes":
        height, width = label["size"]
        corner = torch.rand(2, 2, generator=draw) * 0.5
        side = 0.25 + torch.rand(2, 2, generator=draw) * 0.25
        boxes = torch.cat([corner, corner + side], 1) * torch.tensor([width, height, width, height])
        return torch.cat([boxes, torch.randint(0, int(label["classes"]), (2, 1), generator=draw)], 1)
    return 1 + torch.rand(shape, generator=draw)
