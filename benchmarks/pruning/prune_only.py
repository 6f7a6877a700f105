"""Prunes a network without fine-tuning, for what depends on the structure only: latency.

python -m benchmarks.pruning.prune_only runs/round16 --share 0.4 --round-to 16
python -m benchmarks.latency.speedup --program round16=runs/round16 --out benchmarks/results/speedup_round16.json
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import click

from mtlc.compress.pass_interface import Budget, Context
from mtlc.compress.passes.prune import Prune, PruneConfig
from mtlc.hw.cost.count import workload
from mtlc.job.job import load_job
from mtlc.workflows.opened_job import open_job


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--share", default=0.4, show_default=True, help="MACs that are left.")
@click.option("--round-to", default=16, show_default=True)
@click.option("--job", default=Path("examples/scenes/prune.toml"), type=click.Path(path_type=Path))
def main(folder: Path, share: float, round_to: int, job: Path) -> None:
    opened = open_job(load_job(job))
    config = PruneConfig(
        rounds=1,
        round_to=round_to,
        initial_thres=50.0,
        finetune=None,
        recalibrate=0,
        sensitivity=(),
        calibration_samples=64,
    )
    budget = Budget("macs", share * workload(opened.program).macs)
    with TemporaryDirectory() as scratch:
        context = Context(opened.splits, opened.criteria, opened.program, Path(scratch), budget)
        Prune(config).run(opened.program, context).program.save(folder)


if __name__ == "__main__":
    main()
