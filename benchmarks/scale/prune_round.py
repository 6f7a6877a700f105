"""Processor seconds and memory of one round of pruning for networks of three sizes, part by part.

Each network is measured in a process of its own with one thread, so that the peak of memory is its own. Beside it stand
a training step, and torch-pruning's way: one graph, one score of every channel, one cut.

    python -m benchmarks.scale.prune_round --out benchmarks/results/prune_scale.json
    python -m benchmarks.scale.prune_round --size 25M --pixels 256 --samples 16 --cache-mb 512

The labels are the network's own outputs, so every cut costs something; nothing is trained.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.scale.resnets import SIZES
from mtlc.files import atomic_file

TARGET = 0.6  # of the MACs


def measured(size: str, pixels: int, samples: int, cache_mb: int) -> dict[str, Any]:
    """The parts of a round, in this process."""
    import torch
    import torch_pruning as tp

    from benchmarks.scale.resnets import Pictures, program_of
    from mtlc.compress.channels.channel_costs import ChannelCosts
    from mtlc.compress.channels.channel_groups import ChannelGroups
    from mtlc.compress.pagcp.oracle import Oracle
    from mtlc.compress.pagcp.sensitivity import sensitivity
    from mtlc.compress.pagcp.sweep import Rules, reach
    from mtlc.compress.training.train_config import TrainConfig
    from mtlc.compress.training.trainer import Trainer
    from mtlc.evaluation.criteria import Criteria
    from mtlc.evaluation.splits import Splits
    from mtlc.hw.cost.count import macs
    from mtlc.program.surgery import dependency_graph

    torch.set_num_threads(1)
    program = program_of(size, pixels)
    data = Pictures(samples, pixels, 5).taught_by(program.module)
    criteria, rules = Criteria(program.tasks), Rules(rank="reconstruction")
    seconds: dict[str, float] = {}
    began = time.process_time()

    def part(name: str) -> None:
        nonlocal began
        seconds[name] = round(time.process_time() - began, 2)
        began = time.process_time()

    with torch.inference_mode():
        for image in data.images.split(4):
            program.module(image)
    part("forward")
    groups = ChannelGroups(program.module, program.example_inputs(), residual=False)
    part("groups")
    oracle = Oracle(program, groups, criteria, data, batch_size=4, cache_bytes=cache_mb << 20, reconstruct=True)
    part("oracle")
    sensitivity(oracle, (0.25, 0.5, 0.75), rules)
    of_map = oracle.effort.trials, oracle.effort.forward_equivalents
    part("map")
    costs = ChannelCosts(program, oracle.units, "macs")
    sweeps = reach(oracle, costs, rules, TARGET * costs.cost({}))
    part("sweeps")
    graph = oracle._graph
    assert graph is not None
    found = {
        "size": size, "parameters": program.parameters_count(), "macs": macs(program), "units": len(oracle.units),
        "pixels": pixels, "samples": samples, "cache_mb": cache_mb,
        "kept_share": round(graph.kept_bytes / graph.read_bytes, 3), "run_again": round(graph.run_again, 3),
        "trials": {"map": of_map[0], "sweeps": oracle.effort.trials - of_map[0]},
        "forwards": {
            "map": round(of_map[1], 1), "sweeps": round(oracle.effort.forward_equivalents - of_map[1], 1),
        },
        "sweeps": len(sweeps), "cost": round(costs.cost(oracle.removed) / costs.cost({}), 4),
        "losses": {"before": oracle.original, "after": oracle.losses},
    }  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    del oracle, graph
    splits = Splits(data, data, data)
    trainer = Trainer(program, splits, criteria, TrainConfig(epochs=1, batch_size=4, ema=0.0), 0, None, None)
    trainer.first_step()
    began = time.process_time()
    trainer.first_step()
    part("training step of 4 samples")
    program.module.eval()
    of_others = dependency_graph(program.module, program.example_inputs())
    importance = tp.importance.GroupMagnitudeImportance(p=1)
    roots = [torch.nn.Conv2d]
    ignored = {program.module.semseg.predict, program.module.depth.predict}  # type: ignore[union-attr]
    for group in of_others.get_all_groups(ignored_layers=list(ignored), root_module_types=roots):  # type: ignore[arg-type]
        score = importance(group)
        gone = score.argsort()[: len(score) // 5].tolist()
        of_others.get_pruning_group(group[0].dep.target.module, group[0].dep.handler, gone).prune()
    part("torch-pruning, one cut")
    return found | {"cpu_seconds": seconds, "peak_mb": round(peak)}


@click.command()
@click.option("--size", "sizes", multiple=True, type=click.Choice(list(SIZES)), help="Default: all.")
@click.option("--pixels", default=128, show_default=True)
@click.option("--samples", default=8, show_default=True)
@click.option("--cache-mb", default=128, show_default=True)
@click.option("--out", type=click.Path(path_type=Path))
@click.option("--here", is_flag=True, hidden=True)
def main(sizes: tuple[str, ...], pixels: int, samples: int, cache_mb: int, out: Path | None, here: bool) -> None:
    """Measure one round of pruning for networks of real size."""
    if here:
        print(json.dumps(measured(sizes[0], pixels, samples, cache_mb)))
        return
    found = []
    for size in sizes or SIZES:
        command = [sys.executable, "-m", __spec__.name, "--here", "--size", size, "--pixels", str(pixels)]
        command += ["--samples", str(samples), "--cache-mb", str(cache_mb)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        click.echo(json.dumps(found[-1], indent=1))
    if out is not None:
        from mtlc.hw.measure.this_machine import this_machine

        with atomic_file(out) as temporary:
            temporary.write_text(json.dumps({"machine": this_machine(), "networks": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
