"""Makes the bundles of the check on Arm: the shipped networks, in every form that the runtime runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtlc.compress.pass_interface import Budget, Context
from mtlc.compress.passes.prune import Prune, PruneConfig
from mtlc.export import export_bundle
from mtlc.export.bundle.near_ties import routing_margins
from mtlc.hw.cost.count import workload
from mtlc.job.job import Job, load_job
from mtlc.workflows.export_job import samples_of
from mtlc.workflows.opened_job import Opened, open_job
from mtlc.workflows.slim import slim_job
from mtlc.zoo.scenes import render

EXAMPLES = Path(__file__).parent.parent / "examples" / "scenes"
SCENES = {"train": 64, "val": 16, "size": 64, "seed": 1}
"""Enough to rank channels and to choose widths by; no metric of these networks is reported."""


def small_job(name: str, data: Path, **sections: Any) -> Job:
    """A shipped job with few scenes, which the networks were not trained on, kept in `data`."""
    job = load_job(EXAMPLES / name)
    scenes = job.file.data.model_copy(update={"root": str(data), "args": SCENES})
    return dataclasses.replace(job, file=job.file.model_copy(update={"data": scenes, **sections}))


def pictures(count: int = 2) -> dict[str, np.ndarray]:
    """Inputs for all of these bundles: scenes that none was trained on, uint8 (N, 64, 64, 3)."""
    return {"image": render(count, 64, seed=2)["image"]}


def cnn_bundles(folder: Path) -> dict[str, Path]:
    """The CNN, whole and pruned to half its MACs, without fine-tuning."""
    cnn = open_job(small_job("prune.toml", folder / "data"))
    config = PruneConfig(
        rounds=1, initial_thres=50.0, finetune=None, recalibrate=16, sensitivity=(), calibration_samples=16
    )
    budget = Budget("macs", 0.5 * workload(cnn.program).macs)
    context = Context(cnn.splits, cnn.criteria, cnn.program, folder, budget)
    pruned = Prune(config).run(cnn.program, context).program
    smaller = dataclasses.replace(cnn, program=pruned)
    return {"cnn": _export(cnn, folder / "cnn"), "cnn-pruned": _export(smaller, folder / "cnn-pruned")}


def m3vit_bundles(folder: Path, forms: Sequence[str] = ("queue", "masked", "cached")) -> dict[str, Path]:
    """M³ViT micro, with its experts in each of these forms."""
    opened = _m3vit(folder / "data")
    return {f"m3vit-{form}": _export(opened, folder / f"m3vit-{form}", experts=form) for form in forms}


def slimmable_bundle(folder: Path) -> dict[str, Path]:
    """The CNN at several widths."""
    data = folder / "data"
    section = small_job("slim.toml", data).file.slim
    section = section.model_copy(update={"samples": 8, "recalibrate": 16, "budgets": ["40%"]})
    slim_job(small_job("slim.toml", data, slim=section), folder / "slim", trained=EXAMPLES / "supernet")
    return {"cnn-slimmable": folder / "slim" / "bundle"}


def least_margins(data: Path) -> dict[str, float]:
    """By task of M³ViT micro, how near the nearest tie between experts comes on `pictures`: `routing_margins`."""
    import torch

    program = _m3vit(data).program
    how = program.preprocessing
    assert how is not None, "the scenes say how they are preprocessed"
    pixels = torch.from_numpy(pictures()["image"]).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(how[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    batch = {"image": (pixels * how["scale"] - mean) / std}
    return {task: float(routing_margins(program, batch, task).min()) for task in program.task_names}


def _m3vit(data: Path) -> Opened:
    return open_job(small_job("moe_balance.toml", data))


def _export(opened: Opened, path: Path, **how: Any) -> Path:
    export_bundle(opened.program, path, samples=samples_of(opened), criteria=opened.criteria, **how)
    return path
