"""Measures how much faster pruned networks run than the original, against how many MACs they lost.

    python -m benchmarks.latency.speedup --program 0.6=runs/pruned/pagcp-0-0.6 \
        --program 0.4=runs/pruned/pagcp-0-0.4 --program 0.2=runs/pruned/pagcp-0-0.2 \
        --out benchmarks/results/speedup.json

Each program folder (`Program.save`) becomes a bundle with one program per task and trunk, and a fused one; all bundles
run in turns in onnxruntime on the CPU. The *ideal* speed-up of a network is MACs before / MACs after, and
`of_ideal` is measured / ideal. The layer profile says where the difference is: a layer's GMAC/s before and after, the
time of layers that do no MACs (resizing the outputs), and what the runtime adds (changes of layout).
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch

from mtlc.evaluation.splits import fetch
from mtlc.export.bundle.write_bundle import export_bundle
from mtlc.hw.cost.count import workload
from mtlc.hw.cost.workload import Workload
from mtlc.hw.measure.in_turns import measure
from mtlc.hw.measure.layer_profile import profile_layers
from mtlc.hw.measure.this_machine import this_machine
from mtlc.job.job import load_job
from mtlc.program.program import Program

ORIGINAL = "original"
SETTINGS = {
    "batch 1, 1 thread": {"batch": 1, "threads": 1},
    "batch 1, 2 threads": {"batch": 1, "threads": 2},
    "batch 8, 1 thread": {"batch": 8, "threads": 1},
}
TOLERANCE = 1e-2  # the bundles are timed, not shipped


def timings(bundles: dict[str, Path], costs: dict[str, Workload], images: np.ndarray, rounds: int) -> dict[str, Any]:
    """Latency and speed-up of every network under every setting."""
    table: dict[str, Any] = {}
    for setting, how in SETTINGS.items():
        inputs = np.ascontiguousarray(images[: how["batch"]])
        measured = measure(bundles, inputs, threads=how["threads"], rounds=rounds)
        table[setting] = {"load_1min": measured["device"]["load_1min"], "networks": {}}
        for name, figures in measured["bundles"].items():
            ideal = costs[ORIGINAL].macs / costs[name].macs
            speedup = measured["speedup"].get(name, {"median": 1.0, "p10": 1.0, "p90": 1.0})
            table[setting]["networks"][name] = {
                **figures,
                "speedup": speedup,
                "ideal": ideal,
                "of_ideal": speedup["median"] / ideal,
            }
    return table


def layers(bundles: dict[str, Path], costs: dict[str, Workload], images: np.ndarray, rounds: int) -> dict[str, Any]:
    """Time per layer beside its MACs, for each network: batch 1, one thread."""
    result: dict[str, Any] = {}
    for name, bundle in bundles.items():
        profile = profile_layers(bundle, np.ascontiguousarray(images[:1]), threads=1, rounds=rounds)
        known = costs[name].by_layer()
        rows = []
        for layer in profile["layers"]:
            operator = known.get(layer["name"])
            macs = operator.macs if operator else 0
            rows.append(
                {
                    "name": layer["name"],
                    "kind": "runtime" if operator is None else operator.kind if macs else "without MACs",
                    "ms": layer["ms"],
                    "macs": macs,
                    "gmacs_per_second": macs / layer["ms"] / 1e6 if layer["ms"] else None,
                    "output_shape": list(operator.output_shape) if operator else None,
                }
            )
        kinds: dict[str, float] = {}
        for row in rows:
            kinds[row["kind"]] = kinds.get(row["kind"], 0.0) + row["ms"]
        result[name] = {"total_ms": profile["total_ms"], "ms_by_kind": kinds, "layers": rows}
    return result


def bench(programs: dict[str, Program], images: torch.Tensor, rounds: int) -> dict[str, Any]:
    """All figures of a set of networks, of which `ORIGINAL` comes first."""
    costs = {name: workload(program) for name, program in programs.items()}
    with TemporaryDirectory() as scratch:
        split, fused = ({name: Path(scratch) / f"{kind}-{name}" for name in programs} for kind in ("split", "fused"))
        for name, program in programs.items():
            samples = {program.inputs[0]: images[:3]}
            for path, fuse in ((split[name], False), (fused[name], True)):
                export_bundle(program, path, samples=samples, fuse=fuse, tolerance=TOLERANCE)
        arrays = images.numpy()
        return {
            "networks": {
                name: {
                    "macs": cost.macs,
                    "share": cost.macs / costs[ORIGINAL].macs,
                    "parameters": cost.parameters,
                    "activation_bytes": sum(operator.activation_bytes for operator in cost.operators),
                }
                for name, cost in costs.items()
            },
            "one program per task and trunk": timings(split, costs, arrays, rounds),
            "fused": timings(fused, costs, arrays, rounds),
            "layers": layers(split, costs, arrays, max(20, rounds // 2)),
            "layers, fused": layers(fused, costs, arrays, max(20, rounds // 2)),
        }


@click.command()
@click.option("--program", "folders", multiple=True, required=True, metavar="NAME=FOLDER", help="A pruned network.")
@click.option("--job", default=Path("examples/scenes/prune.toml"), type=click.Path(path_type=Path), show_default=True)
@click.option("--rounds", default=100, show_default=True, type=click.IntRange(2))
@click.option(
    "--out", default=Path("benchmarks/results/speedup.json"), type=click.Path(path_type=Path), show_default=True
)
def main(folders: tuple[str, ...], job: Path, rounds: int, out: Path) -> None:
    torch.set_num_threads(1)
    loaded = load_job(job)
    splits = loaded.load_splits()
    programs = {ORIGINAL: loaded.build_program(splits)}
    for text in folders:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder) or name in programs:
            raise click.UsageError(f"--program {text}: write NAME=FOLDER, each name once")
        programs[name] = Program.load(Path(folder), loaded.source)
    images = fetch(splits.calibration, range(8))[programs[ORIGINAL].inputs[0]]
    result = {"device": this_machine(), "rounds": rounds, **bench(programs, images, rounds)}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    for kind in ("one program per task and trunk", "fused"):
        for setting, table in result[kind].items():
            for name, row in table["networks"].items():
                click.echo(
                    f"{kind} | {setting} | {name}: {row['median_ms']:.2f} ms, {row['speedup']['median']:.2f} × of "
                    f"{row['ideal']:.2f} ({row['of_ideal']:.0%}), spread {row['spread']:.0%}"
                )


if __name__ == "__main__":
    main()
