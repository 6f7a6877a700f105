"""The bundles that every backend must run, each with the networks whose numbers it must give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtlc.evaluation.criteria import Criteria
from mtlc.export import export_bundle
from mtlc.export.quantization import quantize_bundle
from mtlc.export.widths.write_widths import export_widths
from mtlc.hw.cost.count import onnx_workload
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import Limit, TaskSpec
from testkit import slimmable_networks, tiny_networks

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A bundle, and for each of its configurations the program of each task."""

    path: Path
    programs: Mapping[str, Mapping[str, Program]]
    tasks: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.programs["default"]))

    def inputs(self, batch: int, seed: int = 0) -> Arrays:
        """Random inputs of `batch` samples by name."""
        draw = torch.Generator().manual_seed(seed)
        example = next(iter(self.programs["default"].values())).example
        return {name: torch.randn(batch, *t.shape[1:], generator=draw).numpy() for name, t in example.items()}

    def expected(self, inputs: Arrays, configuration: str = "default") -> Arrays:
        """What torch gives for every task."""
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        with torch.inference_mode():
            return {
                task: program.outputs(tensors)[task].numpy() for task, program in self.programs[configuration].items()
            }


class TwoInputs(nn.Module):
    """Two inputs of one shape and two outputs of one shape, which nothing but their names tells apart."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Conv2d(3, 4, 3, padding=1)
        self.far = nn.Conv2d(3, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 2, 1)
        self.right = nn.Conv2d(4, 2, 1)

    def forward(self, near: Tensor, far: Tensor) -> dict[str, Tensor]:
        features = torch.relu(self.near(near)) - 2 * torch.relu(self.far(far))
        return {"left": self.left(features), "right": self.right(features)}


def two_inputs_program() -> Program:
    torch.manual_seed(0)
    example = {name: torch.zeros(2, 3, 8, 8) for name in ("near", "far")}
    tasks = tuple(TaskSpec(task, "l1", "rmse") for task in ("left", "right"))
    return Program(TwoInputs().eval(), tasks, example, ModelSource("testkit.backend_samples:two_inputs"))


def plain(program: Program, path: Path, **options: Any) -> Case:
    draw = torch.Generator().manual_seed(1)
    samples = {name: torch.randn(5, *t.shape[1:], generator=draw) for name, t in program.example.items()}
    export_bundle(program, path, samples=samples, **options)
    return Case(path, {"default": dict.fromkeys(program.task_names, program)})


def make_int8(folder: Path, target: str) -> Case:
    """The CNN in INT8 for `target`, with a limit for each task, and the float32 program that it stays near to."""
    limited = [replace(task, max_drop=Limit(0.05, relative=True)) for task in tiny_networks.REGRESSION]
    program = tiny_networks.resnet_program(limited)
    calibration, validation = tiny_networks.taught(program, 24, 20), tiny_networks.taught(program, 12, 30)
    whole = plain(program, folder / f"{target}-float")
    quantize_bundle(
        whole.path, folder / target, criteria=Criteria(program.tasks), calibration=calibration, validation=validation,
        target=target, samples=16,
    )  # fmt: skip
    return replace(whole, path=folder / target)


def make_int8_widths(folder: Path) -> Case:
    """The slimmable network in INT8, each point with a limit, and the programs in float32 that it must stay near to."""
    whole = make_widths(folder / "float")
    network = whole.programs["default"]["semseg"]
    limited = [TaskSpec(task, "mse", "rmse", max_drop=Limit(0.05, relative=True)) for task in whole.tasks]
    calibration, validation = tiny_networks.taught(network, 24, 20), tiny_networks.taught(network, 12, 30)
    quantize_bundle(
        whole.path, folder / "int8", criteria=Criteria(limited), calibration=calibration, validation=validation,
        target="x86", samples=16,
    )  # fmt: skip
    return replace(whole, path=folder / "int8")


def make_widths(path: Path) -> Case:
    network = slimmable_networks.slimmable()
    narrow = slimmable_networks.networks(network)
    export_widths(network, path, samples=slimmable_networks.SAMPLES, count_macs=lambda model: onnx_workload(model).macs)
    return Case(
        path,
        {
            name: {task: narrow[encoder, width] for task, width in chosen.items()}
            for name, (encoder, chosen) in network.configurations.items()
        },
    )


def make_cases(folder: Path) -> dict[str, Case]:
    """The CNN, split, fused and in one file; the mixture of experts in both forms; two inputs; a slimmable network."""
    return {
        "cnn": plain(tiny_networks.resnet_program(), folder / "cnn"),
        "cnn-fused": plain(tiny_networks.resnet_program(), folder / "fused.mtlc", fuse=True, archive=True),
        "experts-queue": plain(tiny_networks.moe_program(), folder / "queue", experts="queue"),
        "experts-masked": plain(tiny_networks.moe_program(), folder / "masked", experts="masked"),
        "two-inputs": plain(two_inputs_program(), folder / "two"),
        "widths": make_widths(folder / "widths"),
    }  # fmt: skip
