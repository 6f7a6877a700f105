"""Measures how steady a count of instructions is beside wall and CPU time, and whether it catches a loss of 2 %.

    python -m benchmarks.latency.instructions --out benchmarks/results/instructions.json

*Spread*: the same bundle is measured again and again, as ``mtlc profile`` does, each measurement the median of some
calls; the shipped CNN and the shipped M³ViT micro, without added load and with one busy process a core beside it. The
spread is (p90 − p10) / median of the medians.

*Regression*: each trial measures the CNN, the CNN again, and a CNN with about 2 % more MACs, as a baseline and two
later profiles would be. A figure catches the regression if the larger network's is more than 1 % over the baseline's,
and gives a false alarm if the same network's is. A width that is no multiple of a vector costs kernels more than its
MACs say, so the ``growth`` of every figure is written down.

Where the processor gives no counter, the instructions are null and ``instructions_why`` says so; the rest is measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch

from mtlc.export.bundle.write_bundle import export_bundle
from mtlc.hw.cost.count import macs
from mtlc.hw.measure.in_turns import measure
from mtlc.hw.measure.instructions import why_unavailable
from mtlc.hw.measure.this_machine import this_machine
from mtlc.job.job import Job, load_job
from mtlc.program.program import Program
from mtlc.program.tensors_file import load_tensors

EXAMPLES = Path(__file__).parents[2] / "examples" / "scenes"
SHIPPED = {"CNN": "prune.toml", "M³ViT micro": "extract.toml"}
WIDTHS = (32, 64, 96, 128)
GROWTH, THRESHOLD = 0.02, 0.01
TOLERANCE = 1e-2  # the bundles are timed, not shipped
FIGURES = ("instructions", "median_ms", "cpu_median_ms")
SAMPLES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
X = SAMPLES[:1].numpy()


def program(job: Job, args: dict[str, Any] | None = None) -> Program:
    """The network of a job; with `args`, a random one of other sizes."""
    source = job.source if args is None else type(job.source)(job.source.factory, {**job.source.kwargs, **args})
    made = Program(source.build().eval(), job.tasks, {"image": SAMPLES[:2]}, source)
    if args is None:
        load_tensors(made.module, job.weights)
    return made


def larger(job: Job) -> Program:
    """The CNN with one stage wider, the one whose MACs come closest to `GROWTH` more."""
    base = macs(program(job))
    found = (
        program(job, {"widths": [*WIDTHS[:stage], WIDTHS[stage] + more, *WIDTHS[stage + 1 :]]})
        for stage in range(len(WIDTHS))
        for more in range(1, 9)
    )
    return min(found, key=lambda one: abs(macs(one) / base - 1 - GROWTH))


def figures(bundle: Path, rounds: int) -> dict[str, float | None]:
    """One measurement: the median of each figure."""
    found = measure({"it": bundle}, X, rounds=rounds, warmup=2)["bundles"]["it"]
    counted = found["instructions"]
    return {**{key: found[key] for key in FIGURES[1:]}, FIGURES[0]: None if counted is None else counted["median"]}


def spread(values: Sequence[float | None]) -> dict[str, float] | None:
    if None in values:
        return None
    p10, median, p90 = (float(v) for v in np.percentile(np.asarray(values, float), (10, 50, 90)))
    return {"median": median, "p10": p10, "p90": p90, "spread": (p90 - p10) / median}


def repeated(bundle: Path, times: int, rounds: int) -> dict[str, Any]:
    load = this_machine()["load_1min"]
    found = [figures(bundle, rounds) for _ in range(times)]
    return {"load_1min": load, **{key: spread([one[key] for one in found]) for key in FIGURES}}


def trials(base: Path, grown: Path, times: int, rounds: int) -> dict[str, Any]:
    """How many of `times` trials each figure catches, and in how many it cries wolf."""
    result: dict[str, Any] = {key: {"caught": 0, "false_alarms": 0, "growth": []} for key in FIGURES}
    for _ in range(times):
        earlier, again, later = (figures(bundle, rounds) for bundle in (base, base, grown))
        for key, count in result.items():
            first, same, more = earlier[key], again[key], later[key]
            if first is None or same is None or more is None:
                result[key] = None
            elif count is not None:
                count["caught"] += more / first - 1 > THRESHOLD
                count["false_alarms"] += same / first - 1 > THRESHOLD
                count["growth"].append(more / first - 1)
    for count in result.values():
        if count is not None:
            count["growth"] = float(np.median(count["growth"]))
    return {"trials": times, "threshold": THRESHOLD, **result}


@contextmanager
def busy() -> Iterator[None]:
    """One process a core that does nothing but work."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@click.command()
@click.option("--times", default=30, type=click.IntRange(2), show_default=True, help="Measurements, and trials.")
@click.option("--rounds", default=10, type=click.IntRange(2), show_default=True, help="Calls in a measurement.")
@click.option(
    "--out", default=Path("benchmarks/results/instructions.json"), type=click.Path(path_type=Path), show_default=True
)
def main(times: int, rounds: int, out: Path) -> None:
    torch.set_num_threads(1)
    jobs = {name: load_job(EXAMPLES / file) for name, file in SHIPPED.items()}
    programs = {name: program(job) for name, job in jobs.items()}
    grown = larger(jobs["CNN"])
    result: dict[str, Any] = {
        "kind": "measured",
        "device": this_machine(),
        "instructions_why": why_unavailable(),
        "measurements": times,
        "calls_in_a_measurement": rounds,
        "more_macs": macs(grown) / macs(programs["CNN"]) - 1,
        "spread": {},
        "regression": {},
    }
    with TemporaryDirectory() as scratch:
        paths = {name: Path(scratch) / str(index) for index, name in enumerate([*programs, "grown"])}
        for name, made in {**programs, "grown": grown}.items():
            export_bundle(made, paths[name], samples={"image": SAMPLES}, tolerance=TOLERANCE)

        def under(condition: str) -> None:
            result["spread"][condition] = {name: repeated(paths[name], times, rounds) for name in programs}
            result["regression"][condition] = trials(paths["CNN"], paths["grown"], times, rounds)

        under("without added load")
        with busy():
            under("with one busy process a core")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    for condition, networks in result["spread"].items():
        for name, found in networks.items():
            shown = ", ".join(f"{k} {100 * found[k]['spread']:.2f} %" if found[k] else f"{k} -" for k in FIGURES)
            click.echo(f"{condition} | {name}: spread of {shown}")
        caught = result["regression"][condition]
        for key in FIGURES:
            if caught[key]:
                found, alarms = caught[key]["caught"], caught[key]["false_alarms"]
                click.echo(f"{condition} | {key}: {found} of {times} caught, {alarms} false alarms")


if __name__ == "__main__":
    main()
