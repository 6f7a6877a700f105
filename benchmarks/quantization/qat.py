"""Compares INT8 of a pruned network as it is, after plain fine-tuning, and after quantisation-aware fine-tuning.

    python -m benchmarks.pruning.pruners --subject scenes --method pagcp --cut 60% --seed 0 --recipe new \\
        --save runs/pruned
    python -m benchmarks.quantization.qat runs/pruned/pagcp-0-0.4 --seed 0 --seed 1

Every network is exported (fused) and quantised for this machine twice: with no limits, so that everything is in INT8,
and with a limit for every task against the network's own FP32. All trainings have the same seed, steps, learning rate
and distillation from the dense network; the plain one is the `finetune` pass, and once more with the batch norms'
statistics frozen, as `qat` has them. Metrics are of the validation split, in onnxruntime.
What is there of an earlier call is not computed again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from mtlc.compress.pass_interface import Context
from mtlc.compress.passes.finetune import Finetune
from mtlc.compress.passes.qat import Qat, QatConfig, train_with_frozen_norms
from mtlc.compress.training.train_config import FinetuneConfig, TrainConfig
from mtlc.evaluation.criteria import Criteria
from mtlc.export.bundle.write_bundle import export_bundle
from mtlc.export.quantization import quantize_bundle
from mtlc.hw.measure.this_machine import this_machine
from mtlc.job.job import load_job
from mtlc.program.program import Program
from mtlc.tasks.task import Limit
from mtlc.workflows.export_job import samples_of
from mtlc.workflows.opened_job import Opened, open_job

Trained = tuple[Program, dict[str, Any]]


def as_it_is(program: Program, context: Context, epochs: float) -> Trained:
    return program, {}


def finetuned(program: Program, context: Context, epochs: float) -> Trained:
    result = Finetune(FinetuneConfig(recalibrate=0, **_settings(epochs))).run(program, context)
    return result.program, result.report


def finetuned_frozen(program: Program, context: Context, epochs: float) -> Trained:
    tuned = program.clone()
    return tuned, train_with_frozen_norms(tuned, context, TrainConfig(**_settings(epochs)))


def qat(program: Program, context: Context, epochs: float) -> Trained:
    result = Qat(QatConfig(epochs=epochs)).run(program, context)
    return result.program, result.report


def _settings(epochs: float) -> dict[str, Any]:
    """Those of the `qat` pass."""
    config = QatConfig(epochs=epochs)
    return {name: getattr(config, name) for name in TrainConfig.model_fields}


FORMS: dict[str, Callable[[Program, Context, float], Trained]] = {
    "pruned": as_it_is,
    "qat": qat,
    "fine-tuned": finetuned,
    "fine-tuned, frozen norms": finetuned_frozen,
}


def measured(program: Program, opened: Opened, folder: Path, limit: Limit) -> dict[str, Any]:
    """Drops in percent of the network's own FP32 and metrics, by task, with everything in INT8 and inside the limit."""
    plain = folder / "fp32"
    export_bundle(program, plain, samples=samples_of(opened), criteria=opened.criteria, fuse=True, tolerance=1e-2)
    result = {}
    for name, allowed in (("everything", None), ("limited", limit)):
        criteria = Criteria(replace(task, max_drop=allowed) for task in opened.criteria.tasks)
        report = quantize_bundle(
            plain, folder / name, criteria=criteria, calibration=opened.splits.calibration,
            validation=opened.splits.validation,
            log=lambda line: click.echo(f"  {line}", err=True),
        )  # fmt: skip
        drops = {task: _drop(row["validation"], row["higher_is_better"]) for task, row in report["tasks"].items()}
        result[name] = {
            "operators": {"int8": report["operators"]["int8"], "given_back": len(report["operators"]["float"])},
            "macs_int8": report["macs_int8"],
            "metrics": {task: row["validation"] for task, row in report["tasks"].items()},
            "control": {task: row["control"] for task, row in report["tasks"].items()},
            "drop_percent": drops,
            "worst": max(drops, key=drops.__getitem__),
            "worst_drop_percent": max(drops.values()),
            "missed": report["missed"],
        }
    return result


def _drop(metrics: Mapping[str, float], higher_is_better: bool) -> float:
    change = 100 * (metrics["int8"] / metrics["float"] - 1)
    return -change if higher_is_better else change


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--job", default=Path("examples/scenes/prune.toml"), type=click.Path(path_type=Path), show_default=True)
@click.option("--epochs", default=1.0, show_default=True)
@click.option("--seed", "seeds", multiple=True, default=(0,), show_default=True, help="May be given again.")
@click.option(
    "--form", "forms", multiple=True, type=click.Choice(list(FORMS)), help="May be given again. Default: all."
)
@click.option("--limit", default="1%", show_default=True, help="What every task may lose to INT8.")
@click.option("--work", default=Path("runs/qat"), type=click.Path(path_type=Path), show_default=True)
@click.option("--out", default=Path("benchmarks/results/qat.json"), type=click.Path(path_type=Path), show_default=True)
def main(
    folder: Path,
    job: Path,
    epochs: float,
    seeds: tuple[int, ...],
    forms: tuple[str, ...],
    limit: str,
    work: Path,
    out: Path,
) -> None:
    torch.set_num_threads(1)
    opened = open_job(load_job(job))
    pruned = Program.load(folder, opened.job.source)
    result = {
        "device": this_machine(), "job": job.name, "network": folder.name, "limit": limit,
        "training": QatConfig(epochs=epochs).model_dump(mode="json"), "runs": [],
    }  # fmt: skip
    for seed in seeds:
        for form in forms or FORMS:
            if form == "pruned" and seed != seeds[0]:
                continue
            place = work / f"{form.replace(', ', '-').replace(' ', '-')}-{seed}-{epochs:g}"
            kept = place / "result.json"
            if not kept.exists():
                click.echo(f"{form}, seed {seed}", err=True)
                scratch = place / "training"
                scratch.mkdir(parents=True, exist_ok=True)
                context = Context(opened.splits, opened.criteria, opened.program, scratch, seed=seed)
                started = time.perf_counter()
                program, report = FORMS[form](pruned, context, epochs)
                seconds = time.perf_counter() - started
                found = measured(program, opened, place, Limit.parse(limit))
                kept.write_text(json.dumps({"form": form, "seed": seed, "seconds": seconds, "report": report, **found}))
            result["runs"].append(json.loads(kept.read_text()))
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(result, indent=1) + "\n")
    for run in result["runs"]:
        everything, limited = run["everything"], run["limited"]
        click.echo(
            f"{run['form']}, seed {run['seed']}: all in INT8, "
            f"worst {everything['worst']} {everything['worst_drop_percent']:.2f} %, "
            f"inside {limit}, {limited['operators']['given_back']} operators given back"
        )


if __name__ == "__main__":
    main()
