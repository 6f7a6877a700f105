"""Compares predicted with measured latency of networks that the latency table has never seen.

    python -m benchmarks.latency.latency_table --work FOLDER

Networks are narrowed at random (convolutional ones layer by layer, M³ViTs in heads, widths and experts), exported, and
measured in turns. A few others, made with other seeds, tell the table what a kernel and a call cost inside a network;
times of operators come from the table's own probes. Compared are the sum that onnxruntime's profiler gives of the very
network in question, and a line in MACs fitted to the same few networks, one for all and one for each family.
"""

from __future__ import annotations

import itertools
import json
import pickle
import random
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from scipy.optimize import nnls
from scipy.stats import spearmanr
from torch import nn

from mtlc.files import write_json
from mtlc.hw.cost.count import macs
from mtlc.hw.latency_table.kernels import trace_bundle
from mtlc.hw.latency_table.table import LatencyTable, open_table
from mtlc.hw.measure.in_turns import measure
from mtlc.hw.measure.this_machine import this_machine
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec
from mtlc.zoo import m3vit, mtl_resnet

TASKS = ("semseg", "depth", "normals", "edge", "sal")
TURNS = 12


def resnet(rng: random.Random) -> nn.Module:
    """The multi-task CNN of the zoo, every layer cut at random to a count that the pruner could leave."""
    from mtlc.compress.channels.channel_groups import ChannelGroups
    from mtlc.compress.pagcp.sweep import Rules, kept_counts

    network = mtl_resnet(depths=tuple(rng.choice((1, 1, 2)) for _ in range(4))).eval()
    example = (torch.zeros(2, 3, 64, 64),)
    groups = ChannelGroups(network, example)
    rules = Rules(round_to=rng.choice((1, 8)), grid=0.1)
    removed = {}
    for unit in groups.units:
        kept = rng.choice([unit.channels, *kept_counts(unit.channels, rules, unit.multiple, unit.width)])
        if kept < unit.channels:
            removed[unit.name] = list(range(kept, unit.channels))
    groups.prune(removed)
    return network


def vision_transformer(rng: random.Random) -> nn.Module:
    """A micro M³ViT of other width, heads, experts and depth."""
    head = rng.choice((16, 32))
    heads = rng.choice((2, 3, 4, 5)) * (32 // head)
    return m3vit(
        "micro", TASKS[: rng.choice((1, 2, 3))], heads=heads, width=head * heads, blocks=rng.choice((2, 4)),
        experts=rng.choice((4, 8, 16)), top_k=2, expert_width=rng.choice((32, 64, 96, 128)),
        head_width=rng.choice((16, 32, 48)),
    ).eval()  # fmt: skip


class Plain(nn.Module):
    """Another architecture: depthwise separable blocks with a squeeze, and two heads."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, 2, 1), nn.Hardswish()]
        for into, out in itertools.pairwise(widths):
            layers += [nn.Conv2d(into, into, 3, 2, 1, groups=into), nn.BatchNorm2d(into), nn.ReLU()]
            layers += [nn.Conv2d(into, out, 1), nn.BatchNorm2d(out), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.semseg = nn.Conv2d(widths[-1], 13, 1)
        self.depth = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 64), nn.GELU(), nn.Linear(64, 1)
        )

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.body(image)
        return {"semseg": self.semseg(x), "depth": self.depth(x)}


def separable(rng: random.Random) -> nn.Module:
    return Plain([8 * rng.randint(2, 8), *(8 * rng.randint(4, 24) for _ in range(3))]).eval()


FAMILIES = {"resnet": (resnet, 64), "m3vit": (vision_transformer, 64), "separable": (separable, 128)}
SHARES = {"resnet": 16, "m3vit": 9, "separable": 5}
FITTED_OF = {"resnet": 2, "m3vit": 2, "separable": 2}


def make(family: str, seed: int) -> Program:
    build, size = FAMILIES[family]
    torch.manual_seed(seed)
    network = build(random.Random(f"{family}-{seed}"))
    image = torch.zeros(2, 3, size, size)
    with torch.no_grad():
        tasks = tuple(TaskSpec(name, "mse", "mse") for name in network(image))
    return Program(network, tasks, {"image": image}, ModelSource("benchmarks:none"))


def prepare(work: Path) -> list[dict[str, Any]]:
    """Bundles and traces of all networks; what is there already is taken as it is."""
    from mtlc.export.bundle.write_bundle import export_bundle

    networks = []
    for use, counts, offset in (("fitted", FITTED_OF, 1000), ("held out", SHARES, 0)):
        for family, count in counts.items():
            for seed in range(offset, offset + count):
                folder = work / f"{family}-{seed}"
                entry = {"family": family, "seed": seed, "use": use, "bundle": folder / "bundle"}
                known = folder / "traced.pickle"
                if not known.exists():
                    program = make(family, seed)
                    size = FAMILIES[family][1]
                    samples = {"image": torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(seed))}
                    export_bundle(program, folder / "bundle", samples=samples, tolerance=1e-2)
                    one = {"image": samples["image"][:1].numpy()}
                    known.write_bytes(pickle.dumps((trace_bundle(folder / "bundle", one), one, macs(program))))
                    click.echo(f"{family} {seed}: {use}", err=True)
                entry["traced"], entry["inputs"], entry["macs"] = pickle.loads(known.read_bytes())
                networks.append(entry)
    return networks


def timed(networks: list[dict[str, Any]], rounds: int) -> None:
    """Measure all in turns, family by family (inputs differ), `TURNS` times: the least of the medians of the CPU time.

    On a shared machine whole turns are slow; a family must not be measured in one of them alone.
    """
    medians: dict[int, list[tuple[float, float]]] = {id(n): [] for n in networks}
    for _ in range(TURNS):
        for family in FAMILIES:
            mine = [n for n in networks if n["family"] == family]
            bundles = {f"{n['family']}-{n['seed']}": n["bundle"] for n in mine}
            result = measure(bundles, mine[0]["inputs"], threads=1, rounds=max(2, rounds // TURNS), warmup=1)
            for network in mine:
                found = result["bundles"][f"{network['family']}-{network['seed']}"]
                medians[id(network)].append((found["cpu_median_ms"], found["median_ms"]))
    for network in networks:
        network["measured_ms"] = min(cpu for cpu, _ in medians[id(network)])
        network["cpu_median_ms"] = float(np.median([cpu for cpu, _ in medians[id(network)]]))
        network["wall_ms"] = float(np.median([wall for _, wall in medians[id(network)]]))


def quality(predicted: list[float], measured: list[float]) -> dict[str, float]:
    errors = np.abs(np.array(predicted) / np.array(measured) - 1)
    return {
        "median_error": float(np.median(errors)),
        "p90_error": float(np.percentile(errors, 90)),
        "worst_error": float(errors.max()),
        "rank_correlation": float(spearmanr(predicted, measured).statistic),
    }


def line(fitted: list[dict[str, Any]], asked: list[dict[str, Any]], constant: bool) -> list[float]:
    rows = np.array([[constant, n["macs"] / 1e6] for n in fitted], float)
    measured = np.array([n["measured_ms"] for n in fitted])
    weights, _ = nnls(rows / measured[:, None], np.ones(len(fitted)))
    return [float(np.dot(weights, [constant, n["macs"] / 1e6])) for n in asked]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, NullFormatter

    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), constrained_layout=True)
    for axis, key, title in (
        (axes[0], "predicted_ms", "latency table"),
        (axes[1], "line_ms", "line in MACs, per family"),
    ):
        for family in FAMILIES:
            mine = [r for r in rows if r["family"] == family]
            axis.scatter([r["measured_ms"] for r in mine], [r[key] for r in mine], s=18, label=family)
        ends = [min(r["measured_ms"] for r in rows) * 0.8, max(r["measured_ms"] for r in rows) * 1.25]
        axis.plot(ends, ends, color="0.6", linewidth=1)
        axis.set(xscale="log", yscale="log", xlabel="measured, ms", ylabel="predicted, ms", title=title)
    axes[0].legend(frameon=False)
    ticks = [0.2, 0.5, 1, 2, 5]
    for axis in axes:
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(FixedLocator(ticks))
            side.set_major_formatter("{x:g}")
            side.set_minor_formatter(NullFormatter())
    figure.savefig(path, dpi=130)


@click.command()
@click.option(
    "--work", type=click.Path(path_type=Path), required=True, help="Folder for bundles; kept for the next run."
)
@click.option("--rounds", default=40, show_default=True)
@click.option("--out", default=Path("benchmarks/results/latency_table.json"), type=click.Path(path_type=Path))
@click.option("--picture", default=Path("docs/latency_table.png"), type=click.Path(path_type=Path))
def main(work: Path, rounds: int, out: Path, picture: Path) -> None:
    torch.set_num_threads(1)
    networks = prepare(work)
    timed(networks, rounds)
    table: LatencyTable = open_table(1, work / "table.json")
    table.observations = []
    fitted, held_out = ([n for n in networks if n["use"] == use] for use in ("fitted", "held out"))
    for network in fitted:
        table.observe(network["traced"], network["measured_ms"])
    for network in held_out:
        network["predicted"] = table.predict(network["traced"])
    table.save()
    everyone = line(fitted, held_out, True)
    through_zero = line(fitted, held_out, False)
    rows = []
    for network, all_line, zero in zip(held_out, everyone, through_zero, strict=True):
        own = [n for n in fitted if n["family"] == network["family"]]
        traced = network["traced"]
        profiled = sum(k.ms * runs for k, runs in zip(traced.kernels, traced.runs, strict=True))
        rows.append(
            {
                "family": network["family"], "seed": network["seed"], "macs": network["macs"],
                "kernels": traced.kernel_runs,
                "calls": traced.calls, "measured_ms": network["measured_ms"], "wall_median_ms": network["wall_ms"],
                "cpu_median_ms": network["cpu_median_ms"],
                "predicted_ms": network["predicted"].ms, "kernels_ms": network["predicted"].kernels_ms,
                "profiled_ms": profiled, "macs_ms": zero, "one_line_ms": all_line,
                "line_ms": line(own, [network], True)[0],
            }
        )  # fmt: skip
    measured = [r["measured_ms"] for r in rows]
    methods = {
        "table": "predicted_ms", "profiler's sum of the network itself": "profiled_ms",
        "proportional to MACs": "macs_ms",
        "line in MACs": "one_line_ms", "line in MACs per family": "line_ms", "kernels alone": "kernels_ms",
    }  # fmt: skip
    inside, launch, call = table.inside()
    result = {
        "kind": "measured", "device": this_machine(), "threads": 1, "rounds": rounds,
        "measured": "least of twelve medians of the CPU time of a call, networks in turns",
        "fitted_on": [f"{n['family']}-{n['seed']}" for n in fitted],
        "inside_factor": inside, "kernel_overhead_us": launch * 1e3, "call_overhead_us": call * 1e3,
        "quality": {name: quality([r[key] for r in rows], measured) for name, key in methods.items()},
        "by_family": {
            family: {
                name: quality([r[key] for r in of], [r["measured_ms"] for r in of])
                for name, key in methods.items()
                for of in [[row for row in rows if row["family"] == family]]
            }
            for family in FAMILIES
        },
        "networks": rows,
    }  # fmt: skip
    write_json(out, result)
    plot(rows, picture)
    click.echo(json.dumps(result["quality"], indent=1))
    click.echo(json.dumps({f: v["table"] for f, v in result["by_family"].items()}, indent=1))


if __name__ == "__main__":
    main()
