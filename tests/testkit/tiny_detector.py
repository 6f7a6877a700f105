"""A small detector of three classes beside a depth task, with random weights and norms, and its bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mtlc.evaluation.criteria import Criteria
from mtlc.export import export_bundle
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec
from testkit.tiny_networks import random_norms

SIZE = (32, 48)
POSTPROCESS: dict[str, Any] = {
    "kind": "detection",
    "size": list(SIZE),
    "strides": [4, 8],
    "names": ["cup", "pen", "key"],
}
TASKS = (
    TaskSpec("detection", "simota", "map", postprocess=POSTPROCESS),
    TaskSpec("depth", "l1", "rmse"),
)
KWARGS = {"tasks": {"depth": 1}, "classes": 3, "widths": [8, 12, 8, 8], "head_width": 8, "decoder_width": 8}


def program(tasks: tuple[TaskSpec, ...] = TASKS) -> Program:
    """The detector; it finds some boxes in noise."""
    torch.manual_seed(0)
    source = ModelSource("mtlc.zoo:mtl_yolo", KWARGS)
    module = random_norms(source.build()).eval()
    with torch.no_grad():
        for head in module.detector.heads:
            head.objectness.bias.fill_(1)
            head.classes.bias.fill_(0)
    ignored = tuple(name for name in ("detection", "depth") if name not in {task.name for task in tasks})
    return Program(module, tasks, {"image": torch.zeros(2, 3, *SIZE)}, source, ignored_outputs=ignored)


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def bundle(path: Path, **options: Any) -> Path:
    """The detector's bundle at `path`."""
    made = replace(program(), preprocessing={"scale": 1 / 64, "mean": [2.0], "color": "RGB"})
    export_bundle(made, path, samples={"image": images(4)}, criteria=Criteria(TASKS), **options)
    return path
