"""Compares a limit for each task with NNCF's control of one averaged score, by the worst task's drop.

    python -m benchmarks.quantization.quantization_control --control 200 --limit 1% --limit 0.25% \\
        --out benchmarks/results/quantization_control.json

Both start from one fused network that NNCF quantised on the same samples, with the same operators in floating point and
no bias correction, and both may look at the same control samples. Ours gives operators back until every task is within
`--limit`. NNCF's `quantize_with_accuracy_control` gets the mean over the tasks of metric / float metric (inverted where
lower is better) as its score. It runs once with that limit, and, where it stopped with another number of operators in
INT8 than ours, again with a limit of nothing and as many iterations as ours gave operators back (an iteration of NNCF
may give back several that share a pair). Drops are in per cent of the float metric, on the control samples and on the
validation split.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import nncf
import numpy as np
import onnx
import torch

from mtlc.evaluation.criteria import Criteria
from mtlc.export.bundle.write_bundle import export_bundle
from mtlc.export.quantization.bounds import SHARE, Bound, metrics_of
from mtlc.export.quantization.calibration import checked_batches
from mtlc.export.quantization.control import Control
from mtlc.export.quantization.execution import Execution, results
from mtlc.export.quantization.nncf_ranges import quantize_graph
from mtlc.export.quantization.operators import QuantizedGraph, compute_operators, deciders, unrounded
from mtlc.export.quantization.quantize import RANKED
from mtlc.export.quantization.samples import Samples
from mtlc.export.quantization.targets import resolve_target
from mtlc.hw.measure.this_machine import this_machine
from mtlc.job.job import load_job
from mtlc.program.program import Program
from mtlc.runtime import open_bundle
from mtlc.tasks.task import Limit
from mtlc.workflows.export_job import samples_of
from mtlc.workflows.opened_job import open_job


class Bench:
    """One fused float graph, its data and metrics."""

    def __init__(self, bundle: Path, criteria: Criteria, splits: Any, control: int, calibrated: int) -> None:
        with open_bundle(bundle) as opened:
            self.manifest = opened.manifest
            (self.file,) = {program.file for program in self.manifest.programs}
            self.model = onnx.load(opened.folder / self.file)
        self.criteria, self.tasks = criteria, tuple(self.manifest.tasks)
        self.plain = deciders(self.model) | unrounded(self.model, results(self.manifest, self.file))
        self.control = list(checked_batches(self.manifest, splits.calibration, 32, control))
        self.validation = list(checked_batches(self.manifest, splits.validation, 32, len(splits.validation)))
        self.ranges = [inputs for _, inputs in checked_batches(self.manifest, splits.calibration, 1, calibrated)]
        self.float = {name: self.metrics(self.model, data) for name, data in self.data.items()}

    @property
    def data(self) -> dict[str, Any]:
        return {"control": self.control, "validation": self.validation}

    def metrics(self, model: onnx.ModelProto, data: Any) -> dict[str, float]:
        return metrics_of(
            Samples(Execution(self.manifest, {self.file: model}), data).reached(self.criteria, self.tasks)
        )

    def drops(self, model: onnx.ModelProto) -> dict[str, dict[str, float]]:
        """What each task lost, in per cent of its float metric."""
        found = {}
        for name, data in self.data.items():
            plain = self.float[name]
            found[name] = {
                task: 100
                * (plain[task] - value if self.criteria.higher_is_better[task] else value - plain[task])
                / plain[task]
                for task, value in self.metrics(model, data).items()
            }
        return found

    def row(self, model: onnx.ModelProto, seconds: float, **more: Any) -> dict[str, Any]:
        drops = self.drops(model)
        worst = {name: max(values.items(), key=lambda item: item[1]) for name, values in drops.items()}
        return {
            "int8_operators": len(compute_operators(model)), "drops_percent": drops, "seconds": seconds, **more,
            "worst": {name: {"task": task, "drop_percent": drop} for name, (task, drop) in worst.items()},
        }  # fmt: skip


def ours(bench: Bench, graph: QuantizedGraph, limit: Limit) -> dict[str, Any]:
    """The control with a limit for each task."""
    start, file = time.perf_counter(), bench.file
    execution = [Execution(bench.manifest, {file: graph.quantized}) for _ in range(2)]
    first = [({n: v[:RANKED] for n, v in batch.items()}, inputs) for batch, inputs in bench.control[:1]]
    plain = Samples(Execution(bench.manifest, {file: bench.model}), first)
    references = [outputs for _, outputs in plain.outputs(bench.tasks, ())]
    samples = Samples(execution[0], bench.control)
    bounds = {
        task: Bound(limit, value, value, bench.criteria.higher_is_better[task])
        for task, value in bench.float["control"].items()
    }
    control = Control(
        {file: graph}, bench.criteria, samples, Samples(execution[1], first), references, {file: set()}, click.echo
    )
    outcome = control.run(bounds, samples.reached(bench.criteria, bench.tasks))
    model = graph.restored(outcome.floats[file])
    return bench.row(
        model, time.perf_counter() - start, given_back=[vars(step) for step in outcome.steps],
        rankings=outcome.rankings, measurements=outcome.measurements,
    )  # fmt: skip


def averaged(bench: Bench, drop: float, iterations: int | None) -> dict[str, Any]:
    """NNCF's control with one score: the mean over the tasks of metric / float metric."""
    start = time.perf_counter()

    def score(model: onnx.ModelProto, items: Any) -> tuple[float, None]:
        wanted = [index for (index,) in items]
        data = [bench.control[index] for index in wanted]
        values = bench.metrics(model, data)
        shares = []
        for task, value in values.items():
            plain = bench.float["control"][task]
            shares.append(value / plain if bench.criteria.higher_is_better[task] else plain / value)
        return float(np.mean(shares)), None

    numbers = nncf.Dataset([(index,) for index in range(len(bench.control))], lambda item: bench.control[item[0]][1])
    extra = {} if iterations is None else {"max_num_iterations": iterations}
    copy = onnx.ModelProto()
    copy.CopyFrom(bench.model)
    with contextlib.redirect_stdout(io.StringIO()):
        model = nncf.quantize_with_accuracy_control(
            copy,
            nncf.Dataset(bench.ranges),
            numbers,
            score,
            max_drop=drop,
            drop_type=nncf.DropType.ABSOLUTE,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(bench.ranges),
            ignored_scope=nncf.IgnoredScope(names=sorted(bench.plain)),
            advanced_quantization_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.DISABLE, disable_bias_correction=True
            ),
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                ranking_subset_size=1, **extra
            ),
        )
    return bench.row(model, time.perf_counter() - start)


@click.command()
@click.option("--job", default=Path("examples/scenes/prune.toml"), type=click.Path(path_type=Path), show_default=True)
@click.option("--program", type=click.Path(path_type=Path), help="A pruned network of the job, `Program.save`d.")
@click.option("--limit", "limits", multiple=True, default=("1%", "0.5%"), show_default=True)
@click.option("--control", default=128, show_default=True, help="Control samples.")
@click.option("--calibrated", default=128, show_default=True, help="Samples that ranges come from.")
@click.option(
    "--out",
    default=Path("benchmarks/results/quantization_control.json"),
    type=click.Path(path_type=Path),
    show_default=True,
)
def main(job: Path, program: Path | None, limits: tuple[str, ...], control: int, calibrated: int, out: Path) -> None:
    torch.set_num_threads(1)
    logging.getLogger("nncf").setLevel(logging.ERROR)
    opened = open_job(load_job(job))
    network = opened.program if program is None else Program.load(program, opened.job.source)
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "bundle"
        export_bundle(network, path, samples=samples_of(opened), criteria=opened.criteria, fuse=True, tolerance=1e-2)
        criteria = Criteria(replace(task, max_drop=None) for task in opened.criteria.tasks)
        bench = Bench(path, criteria, opened.splits, control, calibrated)
        copy = onnx.ModelProto()
        copy.CopyFrom(bench.model)
        graph = QuantizedGraph(
            bench.model, quantize_graph(copy, bench.file, bench.ranges, resolve_target("x86-vnni"), bench.plain)
        )
        result: dict[str, Any] = {
            "device": this_machine(), "job": job.name, "pruned": program is not None, "control": control,
            "calibrated": calibrated, "share_used_by_ours": SHARE, "float": bench.float,
            "everything": bench.row(graph.quantized, 0.0), "limits": {},
        }  # fmt: skip
        for text in limits:
            limit = Limit.parse(text)
            own = ours(bench, graph, limit)
            rows = {"per_task": own, "averaged": averaged(bench, limit.value, None)}
            given = len(own["given_back"])
            if rows["averaged"]["int8_operators"] != own["int8_operators"] and given:
                rows["averaged_same_count"] = averaged(bench, 0.0, given)
            result["limits"][text] = rows
            for name, row in rows.items():
                click.echo(f"{text} {name}: {row['int8_operators']} operators in INT8, {row['worst']}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
