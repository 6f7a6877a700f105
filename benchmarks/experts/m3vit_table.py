"""Counts M³ViT's MACs for the encoder and one decoder of each task, and its parameters, beside the published ones.

    python -m benchmarks.experts.m3vit_table

Writes ``results/m3vit_table.json``. Counted from shapes, nothing is run and no time is taken. The published numbers are
the "FLOPs" of tables 1 and 2 of the paper, one for a data set whatever the task; the parameters those of the official
modules.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtlc.hw.cost.count import workload
from mtlc.moe.experts import Experts
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec
from mtlc.zoo.m3vit import M3ViT, m3vit

RESULTS = Path(__file__).parents[1] / "results"
DATA_SETS: Mapping[str, Mapping[str, Any]] = {
    "PASCAL-Context": {
        "size": "small", "image_size": [512, 512], "published_gmacs": 84,
        "tasks": {"semseg": 21, "human_parts": 7, "sal": 1, "normals": 3, "edge": 1},
    },
    "NYUD-v2": {
        "size": "small", "image_size": [480, 640], "published_gmacs": 100, "tasks": {"semseg": 40, "depth": 1},
    },
    "Cityscapes": {
        "size": "tiny", "image_size": [128, 256], "published_gmacs": None, "tasks": {"semseg": 7, "depth": 1},
    },
}  # fmt: skip
OFFICIAL_PARAMETERS = {"backbone": 43_463_040, "experts": 28_385_280, "gates": 184_320, "semseg_head": 2_663_445}


class OneTask(nn.Module):
    """The network asked for one task."""

    def __init__(self, network: M3ViT, task: str) -> None:
        super().__init__()
        self.network, self.task = network, task

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.network(image, (self.task,))


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def counted(size: str, image_size: list[int], tasks: Mapping[str, int]) -> dict[str, Any]:
    """MACs by task and by part, and the parameters of the parts."""
    network = m3vit(size, tasks, image_size=image_size).eval()
    rows = {}
    for task in tasks:
        program = Program(
            OneTask(network, task),
            (TaskSpec(task, "mse", "mse"),),
            {"image": torch.zeros(1, 3, *image_size)},
            ModelSource("mtlc.zoo:m3vit"),
        )
        cost = workload(program)
        decoder = sum(operator.macs for operator in cost.operators if operator.name.startswith("network.heads."))
        rows[task] = {
            "gmacs": round(cost.macs / 1e9, 3),
            "encoder_gmacs": round((cost.macs - decoder) / 1e9, 3),
            "decoder_gmacs": round(decoder / 1e9, 3),
        }
    found = {
        "backbone": parameters(network.backbone),
        "experts": sum(parameters(module) for module in network.modules() if isinstance(module, Experts)),
        "gates": sum(parameters(router) for _, router in network.routers()),
        "semseg_head": parameters(network.heads["semseg"]),
    }
    return {"tasks": rows, "parameters": found}


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    table: dict[str, Any] = {"kind": "modelled", "data_sets": {}}
    for name, asked in DATA_SETS.items():
        found = counted(asked["size"], asked["image_size"], asked["tasks"])
        official = OFFICIAL_PARAMETERS if name == "PASCAL-Context" else None
        table["data_sets"][name] = {**asked, **found, "official_parameters": official}
    (RESULTS / "m3vit_table.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
