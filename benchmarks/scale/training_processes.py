"""Measures what processes and loading workers give a training on this machine's CPU.

    python -m benchmarks.scale.training_processes

Four trainings of `mtl_resnet` on PNG pictures of 128 px, which are decoded as they are read, batch 32: in one process
and in two, each with no worker and with one. Every process computes with one thread, so two processes have twice what
one has. They take turns (A B C D, A B C D, …), each turn with a seed of its own and in processes of its own. What is
timed is the training's loop, from the first step to the last.

Expected beforehand: two processes reach 0.8 of twice the speed where two cores are free; a worker hides the decoding
where a core is free for it, and gives nothing where none is (two processes on two cores).

The result says what the load was before the first turn: on a machine that does something else the figures say nothing,
and nothing is measured above `--most-load` unless that is raised.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mtlc.compress.training.process_group import join, leave
from mtlc.compress.training.shared_training import all_done, help_until_done
from mtlc.compress.training.train_config import TrainConfig
from mtlc.compress.training.trainer import train
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits
from mtlc.hw.measure.this_machine import this_machine
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec

SIZE, BATCH = 128, 32
TASKS = (TaskSpec("depth", "l1", "rmse"), TaskSpec("semseg", "cross_entropy", "miou"))
CELLS = ((1, 0), (1, 1), (2, 0), (2, 1))
"""Processes, and workers of each."""


class Pictures:
    """PNG files in memory of smooth noise: depth is the brightness, the class is the brightest colour."""

    def __init__(self, count: int, seed: int) -> None:
        coarse = np.random.default_rng(seed).integers(0, 255, (count, 8, 8, 3), dtype=np.uint8)
        self._files = [_png(picture) for picture in coarse]
        self.identity = f"png:{count}:{seed}"

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        pixels = np.asarray(Image.open(io.BytesIO(self._files[index])), dtype=np.float32) / 255
        image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        return {"image": image, "depth": 0.1 + image.mean(0, keepdim=True), "semseg": image.argmax(0)}


def _png(coarse: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def trained(workers: int, seed: int, steps: int) -> dict[str, Any] | None:
    """Train in this process, with the others that were launched: seconds and losses; None in those that help."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    data, few = Pictures(8 * BATCH, seed), Pictures(8, seed + 1)
    splits = Splits(data, few, few)
    source = ModelSource("mtlc.zoo:mtl_resnet", {"tasks": {"depth": 1, "semseg": 3}})
    program = Program(source.build(), TASKS, {"image": torch.zeros(2, 3, SIZE, SIZE)}, source)
    config = TrainConfig(epochs=steps / 8, batch_size=BATCH, workers=workers, precision="float32")
    group = join()
    if group is not None and not group.leads:
        help_until_done(group, splits)
        leave()
        return None
    started = time.perf_counter()
    report = train(program, splits, Criteria(TASKS), config, seed=seed)
    seconds = time.perf_counter() - started
    if group is not None:
        all_done(group)
        leave()
    return {"seconds": seconds, "steps": report["steps"], "losses": report["losses"]}


def measured(processes: int, workers: int, seed: int, steps: int) -> dict[str, Any]:
    """The same in processes of their own."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    module = ["-m", "benchmarks.scale.training_processes", "--turn", f"{workers}:{seed}:{steps}"]
    done = subprocess.run(
        [sys.executable, *(launch if processes > 1 else []), *module], check=True, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def summary(turns: Mapping[tuple[int, int], Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Samples a second of every cell, as the median over the turns with its range, and what each is of the first."""
    cells = []
    for (processes, workers), found in turns.items():
        rates = [one["steps"] * BATCH / one["seconds"] for one in found]
        # Within a turn, so that a change of load meets both.
        gains = [
            first["seconds"] / one["seconds"] * one["steps"] / first["steps"]
            for first, one in zip(turns[CELLS[0]], found, strict=True)
        ]
        cells.append({
            "processes": processes, "workers": workers,
            "samples_per_second": statistics.median(rates), "least": min(rates), "most": max(rates),
            "times_as_fast": statistics.median(gains), "efficiency": statistics.median(gains) / processes,
            "losses": [one["losses"] for one in found],
        })  # fmt: skip
    return {"cells": cells}


@click.command()
@click.option("--seeds", default=5, type=click.IntRange(1), show_default=True, help="Turns, each with its own seed.")
@click.option("--steps", default=40, type=click.IntRange(8), show_default=True, help="Steps of a training.")
@click.option(
    "--most-load", default=0.5, show_default=True, help="Load of the machine above which nothing is measured."
)
@click.option("--turn", default=None, help="WORKERS:SEED:STEPS: one training in this process, its figures on stdout.")
@click.option("--out", default=Path("benchmarks/results/training_processes.json"), type=click.Path(path_type=Path))
def main(seeds: int, steps: int, most_load: float, turn: str | None, out: Path) -> None:
    if turn is not None:
        found = trained(*map(int, turn.split(":")))
        if found is not None:
            click.echo(json.dumps(found))
        return
    device = this_machine() | {"torch": torch.__version__}
    if (device["load_1min"] or 0.0) > most_load:
        raise click.ClickException(
            f"the load is {device['load_1min']}: wait until the machine is quiet, or raise --most-load"
        )
    turns: dict[tuple[int, int], list[dict[str, Any]]] = {cell: [] for cell in CELLS}
    for seed in range(seeds):
        for cell in CELLS:
            turns[cell].append(measured(*cell, seed, steps))
            click.echo(f"seed {seed}, {cell[0]} processes, {cell[1]} workers: {turns[cell][-1]['seconds']:.1f} s")
    settings = {"seeds": seeds, "steps": steps, "batch": BATCH, "size": SIZE, "threads_per_process": 1}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"device": device, **settings, **summary(turns)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
