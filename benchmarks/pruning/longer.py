"""Trains a pruned network on, one of `pruners.py --save`, to see how far longer fine-tuning mends it.

python -m benchmarks.pruning.pruners --subject scenes --method pagcp --cut 60% --seed 0 --recipe new --save runs/pruned
python -m benchmarks.pruning.longer runs/pruned/pagcp-0-0.4
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch

from mtlc.compress.training.train_config import TrainConfig
from mtlc.compress.training.trainer import train
from mtlc.evaluation.evaluate import evaluate
from mtlc.hw.cost.count import workload
from mtlc.job.job import load_job
from mtlc.program.program import Program
from mtlc.tasks.task import delta_m
from mtlc.workflows.opened_job import open_job


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--epochs", default=14.0, show_default=True)
@click.option("--job", default=Path("examples/scenes/prune.toml"), type=click.Path(path_type=Path))
@click.option("--out", default=Path("benchmarks/results/longer.json"), type=click.Path(path_type=Path))
def main(folder: Path, epochs: float, job: Path, out: Path) -> None:
    torch.set_num_threads(1)
    opened = open_job(load_job(job))
    original, criteria, splits = opened.program, opened.criteria, opened.splits
    pruned = Program.load(folder, original.source)
    before = evaluate(original, criteria, splits.validation).metrics
    config = TrainConfig(epochs=epochs, lr=2e-3, warmup=0.02, distill=0.5)
    train(pruned, splits, criteria, config, seed=0, teacher=original)
    after = evaluate(pruned, criteria, splits.validation).metrics
    found = {
        "macs_share": workload(pruned).macs / workload(original).macs,
        "epochs": epochs,
        "delta_m": delta_m(after, before, criteria.higher_is_better),
        "metrics": after,
        "original": before,
        "seed": 0,
    }
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
