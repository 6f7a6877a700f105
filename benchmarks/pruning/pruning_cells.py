"""Runs one cell of the comparison: a subject, a method, a cut, a seed, a recipe, a rate. Writes one JSON.

A cell first chooses a network of so many MACs (one stage, straight from the trained network), measures its batch-norm
statistics, and trains it on. All methods may train on as many samples. What a method needs for its choice, such as
sparsity training or the race of `recovered`, comes out of that; a narrower network from scratch has the trained
network's own samples besides.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.pruning.pruning_subjects import ROOT, Dense, Subject, dense, epochs_for, samples_in
from benchmarks.pruning.simple_pruners import SIMPLE, prune_simply, start_anew
from benchmarks.pruning.sparsity_training import SparsityTrainer
from mtlc.compress.pass_interface import Budget, Context
from mtlc.compress.passes.finetune import FinetuneConfig
from mtlc.compress.passes.prune import Prune, PruneConfig
from mtlc.compress.training.batch_norm import recalibrate_batchnorm, recalibrate_where_better
from mtlc.compress.training.trainer import TrainConfig, train
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.files import one_at_a_time, write_json
from mtlc.hw.cost.count import macs
from mtlc.hw.measure.this_machine import this_machine
from mtlc.program.program import Program
from mtlc.tasks.task import delta_m
from mtlc.toml_files import read_text

OURS = ("recovered", "pagcp", "tilted")
METHODS = (*OURS, *SIMPLE, "scratch")
ABLATED = ("pagcp", "uniform", "recovered")
RECIPES = ("new", "old")
OLD_RATE = 1e-3
_OLD: Mapping[str, Any] = {"epochs": 2.0, "lr": OLD_RATE, "warmup": 0.02, "distill": 0.5, "ema": 0.998}
_ONE_STAGE: Mapping[str, Any] = {
    "rounds": 1, "initial_thres": 1000.0, "finetune": None, "recalibrate": 0, "sensitivity": (),
}  # fmt: skip
"""The prune pass without what comes after the choice: one round to the target, whatever it costs, no fine-tuning."""
SPARSITY_SHARE = 0.5
"""Of the samples that group norm may train on, those of its sparsity training."""
SEEN_SAMPLES = 512
"""Training samples for batch-norm statistics before the network is judged as it was cut; the same for all methods."""


@dataclass(frozen=True)
class Cell:
    """One run. `share` is what may be left of the MACs; `rate` is the learning rate of its recipe, the peak."""

    subject: str
    method: str
    share: float
    seed: int
    recipe: str
    rate: float
    round_to: int = 8

    @property
    def name(self) -> str:
        rounding = "" if self.round_to == 8 else f"-round{self.round_to}"
        return f"{self.method}-{self.share:g}-{self.seed}-{self.recipe}-{self.rate:g}{rounding}"

    def path(self, work: Path) -> Path:
        """The result's file."""
        return work / self.subject / "cells" / f"{self.name}.json"


def finetuning(recipe: str, epochs: float, rate: float) -> TrainConfig:
    """How all methods are fine-tuned.

    "new" is `finetune`'s own defaults for so many epochs at this rate; "old" what the comparison had before: outputs
    distilled, features not. `rate` and `epochs` are its own there.
    """
    if recipe == "old":
        return TrainConfig(**_OLD)
    defaults = FinetuneConfig(epochs=epochs, lr=rate).model_dump()
    return TrainConfig(**{key: value for key, value in defaults.items() if key in TrainConfig.model_fields})


def run_cell(cell: Cell, subject: Subject, work: Path, save: Path | None = None) -> dict[str, Any]:
    """The result of a cell: read where it is there, else run and written. `save` gets the network, METHOD-SEED-SHARE.

    Raises `UserError` where no network of so few MACs is allowed.
    """
    path = cell.path(work)
    suffix = "" if cell.recipe == "new" else f"-{cell.recipe}"
    saved = None if save is None else save / f"{cell.method}-{cell.seed}-{cell.share:g}{suffix}"
    with one_at_a_time(path):
        if not path.exists() or (saved is not None and not saved.exists()):
            result, program = _run(cell, subject, work)
            if saved is not None:
                program.save(saved)
            write_json(path, result)
    return read_result(path)


def read_result(path: Path) -> dict[str, Any]:
    """What `write_json` has left there. Raises `UserError` for a damaged file."""
    try:
        found = json.loads(read_text(path, "no such result"))
    except ValueError as error:
        raise UserError(f"{path}: no JSON ({error}); delete it and run the cell again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: not the result of a cell; delete it and run the cell again")
    return found


def _run(cell: Cell, subject: Subject, work: Path) -> tuple[dict[str, Any], Program]:
    start = dense(subject, cell.seed, work)
    splits, criteria, original = start.splits, start.criteria, start.program
    whole = macs(original)
    began = time.perf_counter()
    config = finetuning(cell.recipe, subject.epochs, cell.rate)
    allowed = samples_in(config.epochs, config, splits)
    spent = 0
    raced: dict[str, Any] | None = None
    trained_first: dict[str, Any] = {}
    teacher: Program | None = original
    if cell.method == "scratch":
        program, choice = _chosen(replace(cell, method="uniform"), start, work)
        start_anew(program, cell.seed)
        config = start.training.model_copy(update={"lr": cell.rate})
        allowed, teacher = allowed + start.samples, None
    elif cell.method == "group-norm":
        sparse = original.clone()
        first = config.model_copy(update={"epochs": epochs_for(SPARSITY_SHARE * allowed, config, splits)})
        trained_first = SparsityTrainer(sparse, splits, criteria, first, cell.seed, None, original).go(False, _silent)
        spent = int(trained_first["samples"])
        program = prune_simply(cell.method, sparse, splits, criteria, cell.share * whole, cell.seed, cell.round_to)
        choice = {"missed": None}
    elif cell.method == "recovered":
        program, choice, raced = _raced(cell, start, config)
        spent = allowed  # all of its training is the pass's own
    else:
        program, choice = _chosen(cell, start, work)
    chosen_after = time.perf_counter() - began
    cut = None
    if raced is None:
        if cell.method != "scratch":
            recalibrate_batchnorm(program, splits, SEEN_SAMPLES)
        cut = evaluate(program, criteria, splits.validation).metrics
        config = config.model_copy(update={"epochs": epochs_for(allowed - spent, config, splits)})
        report = train(program, splits, criteria, config, seed=cell.seed, teacher=teacher)
        trained = int(report["samples"])
        recalibrate_where_better(program, splits, criteria, SEEN_SAMPLES)  # as the pass does after its own training
    else:
        spent, trained = sum(one["samples"] for one in raced["candidates"]), int(raced["training"]["samples"])
    seconds = time.perf_counter() - began
    before = _trained_metrics(cell, start, work)
    after = {name: evaluate(program, criteria, getattr(splits, name)).metrics for name in _JUDGED}
    deltas = {name: delta_m(after[name], before[name], criteria.higher_is_better) for name in _JUDGED}
    left = macs(program)
    result = {
        **asdict(cell),
        "macs": left, "macs_share": left / whole, "parameters": program.parameters_count(), "missed": choice["missed"],
        "delta_m": deltas["validation"], "delta_m_calibration": deltas["calibration"],
        "delta_m_before_finetuning": None
        if cut is None
        else delta_m(cut, before["validation"], criteria.higher_is_better),
        "race": None
        if raced is None
        else {"chosen": raced["allocation"], "candidates": [_outline(one) for one in raced["candidates"]]},
        "metrics": after["validation"], "dense": {"metrics": before["validation"], "macs": whole},
        "samples": {
            "allowed": allowed, "choosing": spent, "training": trained,
            "dense": 0 if cell.method == "scratch" else start.samples,
        },
        "seconds": {"choosing": choice.get("seconds", chosen_after), "all": seconds},
        "training": config.model_dump(mode="json"),
        "channels": {
            name: layer.weight.shape[0]
            for name, layer in program.module.named_modules()
            if isinstance(layer, (nn.Conv2d, nn.Linear))
        },
        "threads": torch.get_num_threads(),
        **_provenance(),
    }  # fmt: skip
    return result, program


_JUDGED = ("calibration", "validation")


def _trained_metrics(cell: Cell, start: Dense, work: Path) -> dict[str, dict[str, float]]:
    """The metrics of the trained network on both splits, measured once for all cells of a seed."""
    path = work / cell.subject / "dense" / f"{cell.seed}.metrics.json"
    with one_at_a_time(path):
        if not path.exists():
            found = {n: evaluate(start.program, start.criteria, getattr(start.splits, n)).metrics for n in _JUDGED}
            write_json(path, found)
    return read_result(path)


def _silent(_: str) -> None:
    """Tells nobody."""


def _chosen(cell: Cell, start: Dense, work: Path) -> tuple[Program, dict[str, Any]]:
    """The network that a method chooses, before any training, and what the choice took.

    It depends neither on the recipe nor on the rate, so it is kept for the cells that differ in these only.
    """
    rounding = "" if cell.round_to == 8 else f"-round{cell.round_to}"
    folder = work / cell.subject / "chosen" / f"{cell.method}-{cell.share:g}-{cell.seed}{rounding}"
    note = folder.with_name(folder.name + ".json")
    with one_at_a_time(note):
        if not note.exists():
            began = time.perf_counter()
            target = cell.share * macs(start.program)
            program, told = _choose(cell, start, target)
            program.save(folder)
            write_json(note, {**told, "seconds": time.perf_counter() - began})  # last: it says that the folder is whole
    return Program.load(folder, start.program.source), read_result(note)


def _choose(cell: Cell, start: Dense, target: float) -> tuple[Program, dict[str, Any]]:
    splits, criteria = start.splits, start.criteria
    if cell.method in SIMPLE:
        pruned = prune_simply(cell.method, start.program, splits, criteria, target, cell.seed, cell.round_to)
        return pruned, {"missed": None}
    return _by_the_pass(cell, start.program, splits, criteria, target)


def _by_the_pass(
    cell: Cell, program: Program, splits: Any, criteria: Criteria, target: float
) -> tuple[Program, dict[str, Any]]:
    """What the prune pass chooses in one go: by the paper's own allocation, or by another that needs no training."""
    config = PruneConfig(method=cell.method, round_to=cell.round_to, **_ONE_STAGE)
    with tempfile.TemporaryDirectory() as folder:
        context = Context(splits, criteria, program, Path(folder), Budget("macs", target), cell.seed)
        found = Prune(config).run(program, context)
    return found.program, {"missed": found.missed}


def _raced(cell: Cell, start: Dense, training: TrainConfig) -> tuple[Program, dict[str, Any], dict[str, Any]]:
    """The prune pass with a race between allocations, fine-tuned by itself: one round, `training` for all in it.

    The race between candidates takes its samples from those of the training, so the total is that of every method.
    """
    settings = {key: value for key, value in training.model_dump().items() if key in FinetuneConfig.model_fields}
    config = PruneConfig(
        method="recovered", rounds=1, round_to=cell.round_to, sensitivity=(), recalibrate=SEEN_SAMPLES,
        finetune=FinetuneConfig(**{**settings, "recalibrate": SEEN_SAMPLES}),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        target = cell.share * macs(start.program)
        context = Context(start.splits, start.criteria, start.program, Path(folder), Budget("macs", target), cell.seed)
        found = Prune(config).run(start.program, context)
    return found.program, {"missed": found.missed}, found.report["rounds"][-1]


def _outline(candidate: Mapping[str, Any]) -> dict[str, Any]:
    """Of a candidate, what the table of the race needs."""
    return {key: candidate[key] for key in ("name", "kept", "cost", "samples")} | {
        "scores": [heat["score"] for heat in candidate["heats"]]
    }


def _provenance() -> dict[str, Any]:
    """Which code ran, on what machine, with which packages."""
    packages = ("torch", "torch-pruning", "numpy")
    return {
        "revision": revision(),
        "machine": this_machine(),
        "versions": {name: version(name) for name in packages},
    }


def revision() -> str | None:
    """The commit of the repository, with "+" where files differ from it; None outside of a repository."""
    try:
        asked = [["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"]]
        commit, changed = (
            subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout for command in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.strip() + ("+" if changed.strip() else "")
