"""Compares pruning for measured latency with pruning for MACs: Δm against the latency that is measured.

    python -m benchmarks.pruning.latency_pruning --work FOLDER --seeds 2

Every network starts from the shipped multi-task CNN and is cut in one round of PAGCP with reconstruction, to a series
of points; the aim is all that differs. Then it gets the same short fine-tuning. All networks are exported and measured
in turns in one run. "macs" has the pass's defaults (counts in multiples of 8), "macs-16" the multiples that the CPU's
blocks have, "latency" asks the latency table.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch

from mtlc.compress.pass_interface import Budget, Context
from mtlc.compress.passes import prune
from mtlc.compress.passes.prune import Prune, PruneConfig
from mtlc.compress.training.batch_norm import recalibrate_batchnorm
from mtlc.compress.training.train_config import TrainConfig
from mtlc.compress.training.trainer import train
from mtlc.evaluation.evaluate import evaluate
from mtlc.export.bundle.write_bundle import export_bundle
from mtlc.files import write_json
from mtlc.hw.cost.count import macs
from mtlc.hw.measure.in_turns import measure
from mtlc.hw.measure.program_latency import latency_ms
from mtlc.hw.measure.this_machine import this_machine
from mtlc.job.job import load_job
from mtlc.program.program import Program
from mtlc.tasks.task import delta_m
from mtlc.workflows.opened_job import open_job

POINTS = {"macs": (0.85, 0.7, 0.55, 0.4), "macs-16": (0.85, 0.7, 0.55, 0.4), "latency": (0.9, 0.8, 0.7, 0.6)}
"""What is left of the MACs, or of the latency, at each point."""
SAMPLES = 64


def cut(opened: Any, program: Program, aim: str, share: float, seed: int, whole_ms: float, folder: Path) -> Program:
    config = PruneConfig(
        rounds=1, round_to=16 if aim == "macs-16" else 8, initial_thres=1000.0, finetune=None, recalibrate=0,
        sensitivity=(), calibration_samples=SAMPLES,
    )  # fmt: skip
    kind, whole = ("latency", whole_ms) if aim == "latency" else ("macs", float(macs(program)))
    context = Context(opened.splits, opened.criteria, program, folder, Budget(kind, share * whole), seed)  # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    # One round that the prediction alone ends: on a machine whose speed drifts, a measured budget would add rounds, and
    # all networks are measured in turns at the end.
    known = {id(program.module): whole_ms}
    with mock.patch.object(prune, "latency_ms", lambda network, device: known.get(id(network.module), 0.0)):
        return Prune(config).run(program, context).program


def prepare(opened: Any, work: Path, seeds: int, epochs: float) -> list[dict[str, Any]]:
    """Networks with their metrics; what is there already is taken as it is."""
    program: Program = opened.program
    before = evaluate(program, opened.criteria, opened.splits.validation).metrics
    whole_ms = 0.0
    rows = []
    for seed in range(seeds):
        for aim, shares in POINTS.items():
            for share in shares:
                folder = work / f"{aim}-{share}"
                done = work / f"{aim}-{share}-{seed}.json"
                if not (folder / "program").exists():
                    whole_ms = whole_ms or latency_ms(program)
                    cut(opened, program, aim, share, 0, whole_ms, folder / "rounds").save(folder / "program")
                if not done.exists():
                    network = Program.load(folder / "program", program.source)
                    recalibrate_batchnorm(network, opened.splits)
                    raw = evaluate(network, opened.criteria, opened.splits.validation).metrics
                    if epochs:
                        config = TrainConfig(epochs=epochs, lr=1e-3, warmup=0.02, distill=0.5)
                        train(network, opened.splits, opened.criteria, config, seed=seed, teacher=program)
                    after = raw if not epochs else evaluate(network, opened.criteria, opened.splits.validation).metrics
                    if not (folder / "bundle").exists():
                        samples = {n: torch.randn(3, *t.shape[1:]) for n, t in network.example.items()}
                        export_bundle(network, folder / "bundle", samples=samples, tolerance=1e-2)
                    higher = opened.criteria.higher_is_better
                    row = {
                        "aim": aim, "share": share, "seed": seed, "macs": macs(network),
                        "macs_share": macs(network) / macs(program),
                        "delta_m": delta_m(after, before, higher),
                        "delta_m_before_finetuning": delta_m(raw, before, higher),
                        "channels": {
                            name: layer.out_channels
                            for name, layer in network.module.named_modules()
                            if isinstance(layer, torch.nn.Conv2d)
                        },
                    }  # fmt: skip
                    write_json(done, row)
                    click.echo(
                        f"{aim} {share} seed {seed}: {row['macs_share']:.1%} MACs, Δm {row['delta_m']:+.2f} %", err=True
                    )
                rows.append(json.loads(done.read_text()))
    return rows


def at_same(rows: list[dict[str, Any]], aim: str, other: str) -> dict[str, Any]:
    """Both curves, means over the seeds, read at the points of `aim` that lie inside the other's range."""
    mine, others = curve(rows, aim), curve(rows, other)
    delta, latency = [], []
    for ms, value in mine:
        if others[0][0] <= ms <= others[-1][0]:
            delta.append(value - float(np.interp(ms, *zip(*others, strict=True))))
        by_delta = sorted((d, t) for t, d in others)
        if by_delta[0][0] <= value <= by_delta[-1][0]:
            latency.append(ms / float(np.interp(value, *zip(*by_delta, strict=True))) - 1)
    return {
        "delta_m_gained_at_the_same_latency": delta, "mean_delta_m_gained": float(np.mean(delta)) if delta else None,
        "latency_at_the_same_delta_m": latency, "mean_latency_change": float(np.mean(latency)) if latency else None,
    }  # fmt: skip


def curve(rows: list[dict[str, Any]], aim: str) -> list[tuple[float, float]]:
    """(ms, Δm) by rising latency."""
    points: dict[float, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["aim"] == aim:
            points[row["share"]].append(row)
    return sorted((p[0]["measured_ms"], float(np.mean([r["delta_m"] for r in p]))) for p in points.values())


@click.command()
@click.option(
    "--work", type=click.Path(path_type=Path), required=True, help="Folder for networks; kept for the next run."
)
@click.option("--job", default=Path("examples/scenes/prune.toml"), type=click.Path(path_type=Path))
@click.option("--seeds", default=2, show_default=True)
@click.option("--epochs", default=1.0, show_default=True)
@click.option("--rounds", default=100, show_default=True)
@click.option("--out", default=Path("benchmarks/results/latency_pruning.json"), type=click.Path(path_type=Path))
def main(work: Path, job: Path, seeds: int, epochs: float, rounds: int, out: Path) -> None:
    torch.set_num_threads(1)
    opened = open_job(load_job(job))
    rows = prepare(opened, work, seeds, epochs)
    original = work / "original"
    samples = {n: torch.randn(3, *t.shape[1:]) for n, t in opened.program.example.items()}
    if not original.exists():
        export_bundle(opened.program, original, samples=samples, tolerance=1e-2)
    bundles = {
        "original": original,
        **{f"{r['aim']}-{r['share']}": work / f"{r['aim']}-{r['share']}" / "bundle" for r in rows},
    }
    result = measure(bundles, {n: s[:1].numpy() for n, s in samples.items()}, threads=1, rounds=rounds)
    for row in rows:
        found = result["bundles"][f"{row['aim']}-{row['share']}"]
        row["measured_ms"], row["wall_median_ms"], row["wall_min_ms"] = (
            found["cpu_median_ms"], found["median_ms"], found["min_ms"],
        )  # fmt: skip
    write_json(
        out,
        {
            "kind": "measured", "device": this_machine(), "threads": 1, "rounds": rounds, "seeds": seeds,
            "epochs": epochs,
            "measured": "median CPU time of a call, networks in turns",
            "original_ms": result["bundles"]["original"]["cpu_median_ms"],
            "latency_against": {other: at_same(rows, "latency", other) for other in ("macs", "macs-16")},
            "networks": rows,
        },
    )  # fmt: skip
    for row in sorted(rows, key=lambda r: (r["aim"], -r["share"], r["seed"])):
        click.echo(
            f"{row['aim']:8} {row['share']:.2f} seed {row['seed']}: {row['measured_ms']:.3f} ms, "
            f"{row['macs_share']:.1%} MACs, Δm {row['delta_m']:+.2f} %"
        )


if __name__ == "__main__":
    main()
