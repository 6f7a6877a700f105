"""Compares PAGCP and torch-pruning's pruners by Δm against MACs, with the same data and fine-tuning.

Every method starts from the shipped multi-task network and goes through the same stages: prune to 60 %, fine-tune,
prune to 40 %, fine-tune, prune to 20 %, fine-tune. Channels are multiples of 8, unless asked otherwise, and task heads
are left alone for all.

    python -m benchmarks.pruning.pruners --method pagcp --seed 0 --out benchmarks/results/pruners
    python -m benchmarks.pruning.pruners --collect benchmarks/results/pruners

The second call writes ``pruners.json`` from the runs that are there.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
import torch_pruning as tp

from mtlc.compress.pass_interface import Budget, Context
from mtlc.compress.passes.prune import Prune, PruneConfig
from mtlc.compress.training.batch_norm import recalibrate_batchnorm
from mtlc.compress.training.train_config import TrainConfig
from mtlc.compress.training.trainer import train
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.evaluation.splits import Splits, fetch
from mtlc.hw.cost.count import workload
from mtlc.job.job import load_job
from mtlc.program.program import Program
from mtlc.tasks.task import delta_m

STAGES = (0.6, 0.4, 0.2)
FINETUNE: dict[str, Any] = {"epochs": 2.0, "lr": 1e-3, "warmup": 0.02, "distill": 0.5}
ROUND_TO = 8


def pagcp(program: Program, splits: Splits, criteria: Criteria, target: float, seed: int, round_to: int) -> Program:
    """mtlc's prune pass with its defaults, without its own fine-tuning between rounds."""
    config = PruneConfig(
        rounds=1, initial_thres=1000.0, round_to=round_to, finetune=None, recalibrate=0, sensitivity=()
    )
    with tempfile.TemporaryDirectory() as folder:
        context = Context(splits, criteria, program, Path(folder), Budget("macs", target), seed)
        return Prune(config).run(program, context).program


def torch_pruner(
    importance: Callable[[], Any],
    *,
    scope: str,
    kind: type = tp.pruner.BasePruner,
    gradients: bool = False,
    whole: bool = False,
) -> Any:
    """A pruner of torch-pruning in small steps until the MACs are met; "global" or "local" scope.

    A step of local scope cuts many layers at once. It is left where the MACs are met, which leaves some decoders twice
    as wide as others, or with `whole` finished, which overshoots the target.
    """

    def prune(program: Program, splits: Splits, criteria: Criteria, target: float, seed: int, round_to: int) -> Program:
        torch.manual_seed(seed)
        clone = program.clone()
        heads = [m for name, m in clone.module.named_modules() if name.endswith(".predict")]
        pruner = kind(
            clone.module, clone.example_inputs(), importance(), global_pruning=scope == "global", pruning_ratio=1.0,
            max_pruning_ratio=0.9, iterative_steps=100, ignored_layers=heads, round_to=round_to,
            in_channel_groups={}, out_channel_groups={}, num_heads={},
        )  # fmt: skip
        for _ in range(100):
            if gradients:
                _summed_loss_gradients(clone, splits, criteria)
            # Group by group, so that a step that cuts many layers at once does not overshoot the target.
            for group in pruner.step(interactive=True):
                if not whole and workload(clone).macs <= target:
                    return clone
                group.prune()
            if workload(clone).macs <= target:
                return clone
        return clone

    return prune


def _summed_loss_gradients(program: Program, splits: Splits, criteria: Criteria) -> None:
    program.module.zero_grad()
    batch = fetch(splits.calibration, range(min(128, len(splits.calibration))))
    sum(criteria.losses(program.outputs(batch), batch).values()).backward()  # type: ignore[union-attr]


METHODS: dict[str, Any] = {
    "pagcp": pagcp,
    "magnitude": torch_pruner(lambda: tp.importance.GroupMagnitudeImportance(p=1), scope="local"),
    "taylor": torch_pruner(lambda: tp.importance.GroupTaylorImportance(), scope="global", gradients=True),
    "group-norm": torch_pruner(
        lambda: tp.importance.GroupMagnitudeImportance(p=2), scope="global", kind=tp.pruner.GroupNormPruner
    ),
    "magnitude-whole": torch_pruner(lambda: tp.importance.GroupMagnitudeImportance(p=1), scope="local", whole=True),
    "random-whole": torch_pruner(lambda: tp.importance.RandomImportance(), scope="local", whole=True),
    "random": torch_pruner(lambda: tp.importance.RandomImportance(), scope="local"),
}


def run(method: str, seed: int, job_path: Path, save: Path | None, count: int, round_to: int) -> dict[str, Any]:
    """The first `count` stages of one method with one seed; metrics and Δm on the validation split.

    Channels are multiples of `round_to`. `save` gets each stage's network.
    """
    job = load_job(job_path)
    splits = job.load_splits()
    program = original_program = job.build_program(splits)
    criteria = Criteria(program.tasks)
    original, macs = evaluate(program, criteria, splits.validation).metrics, workload(program).macs
    stages = []
    for share in STAGES[:count]:
        started = time.perf_counter()
        program = METHODS[method](program, splits, criteria, share * macs, seed, round_to)
        chosen = time.perf_counter() - started
        recalibrate_batchnorm(program, splits)
        raw = evaluate(program, criteria, splits.validation).metrics
        train(program, splits, criteria, TrainConfig(**FINETUNE), seed=seed, teacher=original_program)
        metrics = evaluate(program, criteria, splits.validation).metrics
        cost = workload(program)
        if save is not None:
            program.save(save / f"{method}-{seed}-{share}")
        stages.append(
            {
                "target": share, "macs": cost.macs, "share": cost.macs / macs, "parameters": cost.parameters,
                "delta_m": delta_m(metrics, original, criteria.higher_is_better),
                "delta_m_before_finetuning": delta_m(raw, original, criteria.higher_is_better),
                "metrics": metrics, "seconds_choosing": chosen,
                "channels": {
                    name: layer.out_channels
                    for name, layer in program.module.named_modules()
                    if isinstance(layer, torch.nn.Conv2d)
                },
            }
        )  # fmt: skip
        click.echo(f"{method} seed {seed}: {cost.macs / macs:.1%} MACs, Δm {stages[-1]['delta_m']:+.2f} %", err=True)
    return {
        "method": method,
        "seed": seed,
        "round_to": round_to,
        "original": original,
        "finetune": FINETUNE,
        "stages": stages,
    }


def collect(folder: Path) -> dict[str, Any]:
    """Mean and spread over the seeds for every method and stage."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*-*.json"))]
    table: dict[str, Any] = {}
    for method in METHODS:
        mine = [r for r in runs if r["method"] == method]
        for index, share in enumerate(STAGES if mine else ()):
            there = [r for r in mine if len(r["stages"]) > index]
            if not there:
                continue
            deltas = [r["stages"][index]["delta_m"] for r in there]
            shares = [r["stages"][index]["share"] for r in there]
            table.setdefault(method, {})[f"-{1 - share:.0%}"] = {
                "delta_m_mean": statistics.mean(deltas),
                "delta_m_std": statistics.stdev(deltas) if len(deltas) > 1 else None,
                "delta_m": deltas,
                "macs_share": statistics.mean(shares),
                "seeds": [r["seed"] for r in there],
            }
    return {"baseline": "the uncompressed multi-task network", "finetune": FINETUNE, "table": table}


@click.command()
@click.option("--method", type=click.Choice(list(METHODS)))
@click.option("--seed", default=0)
@click.option("--job", default=Path("examples/scenes/prune.toml"), type=click.Path(path_type=Path))
@click.option("--out", default=Path("benchmarks/results/pruners"), type=click.Path(path_type=Path))
@click.option("--collect", "folder", type=click.Path(path_type=Path))
@click.option("--save", type=click.Path(path_type=Path), help="Folder for the network of every stage.")
@click.option("--stages", default=len(STAGES), show_default=True)
@click.option("--round-to", default=ROUND_TO, show_default=True, help="Channels are multiples of it.")
@click.option("--threads", default=1)
def main(
    method: str | None,
    seed: int,
    job: Path,
    out: Path,
    folder: Path | None,
    save: Path | None,
    stages: int,
    round_to: int,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    if folder is not None:
        (folder.parent / "pruners.json").write_text(json.dumps(collect(folder), indent=1) + "\n")
        return
    if method is None:
        raise click.UsageError("give --method or --collect")
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{method}-{seed}.json").write_text(
        json.dumps(run(method, seed, job, save, stages, round_to), indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
