from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mtlc.export import export_bundle
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec
from mtlc.zoo.resnet import mtl_resnet

TASKS = {"semseg": 4, "depth": 1, "edge": 1}
KWARGS: dict[str, Any] = {"tasks": TASKS, "widths": (8, 16), "depths": (1, 1), "decoder_width": 8}


@dataclass(frozen=True)
class Exported:
    program: Program
    path: Path
    samples: dict[str, torch.Tensor]
    report: dict[str, Any]


def tiny_program() -> Program:
    """A small `mtl_resnet` in training mode whose batch norms have statistics of their own."""
    torch.manual_seed(0)
    module = mtl_resnet(**KWARGS)
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(8, 3, 32, 32) + 1)
    tasks = tuple(TaskSpec(name, "l1", "rmse") for name in TASKS)
    source = ModelSource("mtlc.zoo.resnet:mtl_resnet", KWARGS)
    preprocessing = {"scale": 1 / 255, "mean": [0.5], "std": [0.25], "color": "RGB", "layout": "NCHW"}
    return Program(module, tasks, {"image": torch.zeros(2, 3, 32, 32)}, source, preprocessing=preprocessing)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    program = tiny_program()
    path = tmp_path_factory.mktemp("exported") / "tiny"
    samples = {"image": torch.randn(7, 3, 32, 32)}
    report = export_bundle(program, path, samples=samples, provenance={"job": "tiny.toml"})
    return Exported(program, path, samples, report)
