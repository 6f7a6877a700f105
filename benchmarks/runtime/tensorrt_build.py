"""Builds a bundle's TensorRT engines and notes their seconds and bytes. Nothing is run: no GPU is needed.

    python -m benchmarks.runtime.tensorrt_build cnn=BUNDLE m3vit=BUNDLE --quantised cnn=BUNDLE --quantised m3vit=BUNDLE

Bundles named first are built in float32 and float16, those behind ``--quantised`` in int8. The builder works on one
core. Figures are medians of the rounds, in which networks and precisions take turns; CPU seconds (of everything that
``mtlc build`` does) stand beside wall time, as other processes disturb them less. Writes
``results/tensorrt_build.json``.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from mtlc.export.tensorrt.engines import build_engines
from mtlc.files import write_json
from mtlc.hw.measure.this_machine import this_machine
from mtlc.runtime import open_bundle
from mtlc.runtime.bundle.manifest import Sizes

RESULTS = Path(__file__).parents[1] / "results" / "tensorrt_build.json"
BATCH = Sizes(1, 1, 8)


def onnx_bytes(bundle: Path) -> int:
    """The programs and their weights."""
    with open_bundle(bundle) as opened:
        engines = {engine.file for engine in opened.manifest.engines.values()}
        return sum(file.bytes for name, file in opened.manifest.files.items() if name not in engines)


def named(pair: str) -> tuple[str, Path]:
    name, _, path = pair.partition("=")
    return name, Path(path)


@click.command()
@click.argument("bundles", nargs=-1, required=True)
@click.option("--quantised", multiple=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--out", default=RESULTS, type=click.Path(path_type=Path))
def main(bundles: tuple[str, ...], quantised: tuple[str, ...], rounds: int, out: Path) -> None:
    wanted = [(*named(pair), precision) for pair in bundles for precision in ("fp32", "fp16")]
    wanted += [(*named(pair), "int8") for pair in quantised]
    reports: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for turn in range(rounds):
        for name, bundle, precision in wanted:
            started = time.process_time()
            with TemporaryDirectory() as scratch:
                report = build_engines(bundle, Path(scratch) / "engines", precision, dimensions={"batch": BATCH})
            reports.setdefault((name, precision), []).append(report | {"cpu_seconds": time.process_time() - started})
            seconds = sum(engine["build_seconds"] for engine in report["engines"])
            click.echo(f"{turn + 1}/{rounds} {name} {precision}: {seconds:.1f} s", err=True)
    rows = []
    for name, bundle, precision in wanted:
        found = reports[name, precision]
        first = found[0]
        rows.append(
            {
                "network": name,
                "precision": precision,
                "engines": len(first["engines"]),
                "layers": sum(engine["layers"] for engine in first["engines"]),
                "nodes_in_float32": sum(len(engine["in_float32"]) for engine in first["engines"]),
                "onnx_bytes": onnx_bytes(bundle),
                "engine_bytes": sum(engine["bytes"] for engine in first["engines"]),
                "parse_seconds": median(found, "parse_seconds"),
                "build_seconds": median(found, "build_seconds"),
                "cpu_seconds": statistics.median(report["cpu_seconds"] for report in found),
            }
        )
    write_json(
        out,
        {
            "kind": "built, not run",
            "machine": this_machine(),
            "module": first["module"],
            "version": first["version"],
            "compute_capabilities": first["compute_capabilities"],
            "batch": BATCH.to_list(),
            "rounds": rounds,
            "rows": rows,
        },
    )
    click.echo(str(out))


def median(reports: list[dict[str, Any]], key: str) -> float:
    """Of the sums over a bundle's engines."""
    return statistics.median(sum(engine[key] for engine in report["engines"]) for report in reports)


if __name__ == "__main__":
    main()
