"""Quantises a bundle to INT8: the same programs, tasks, inputs and outputs, with a limit on what each task may lose."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import MetricTotals
from mtlc.export.bundle.compare_programs import compare_programs
from mtlc.export.bundle.publish import file_info, publish, write_manifest
from mtlc.export.bundle.write_bundle import WEIGHTS
from mtlc.export.graph.detection_program import write_decoders
from mtlc.export.graph.weights_file import WeightsFile
from mtlc.export.quantization.bounds import Bound, Reached, asked_bounds, metrics_of, missed_line
from mtlc.export.quantization.calibration import CALIBRATION, CheckedBatches, checked_batches
from mtlc.export.quantization.computed_weights import fold_computed_weights
from mtlc.export.quantization.control import Control, Outcome
from mtlc.export.quantization.execution import (
    ONNXRUNTIME,
    Execution,
    Values,
    feeds,
    multiplications,
    results,
)
from mtlc.export.quantization.int8_chances import int8_chances
from mtlc.export.quantization.int8_edges import round_edges_in_maker
from mtlc.export.quantization.nncf_ranges import quantize_graph
from mtlc.export.quantization.operators import MULTIPLIERS, QuantizedGraph, deciders, name_pairs, unrounded
from mtlc.export.quantization.request import check_request, wrong_here
from mtlc.export.quantization.samples import Samples
from mtlc.export.quantization.shared_int8 import SharedInt8
from mtlc.export.quantization.targets import Target
from mtlc.export.quantization.width_points import by_configuration, unrolled, unrolled_criteria, with_metrics
from mtlc.log import Log, silent
from mtlc.runtime.bundle.manifest import Manifest, Quantization
from mtlc.runtime.bundle.open_bundle import OpenBundle, open_bundle

Models = dict[str, onnx.ModelProto]
BATCH = 32
RANKED = 32
"""Samples that operators are ranked on: squared errors settle with few, metrics do not."""
COMPARED = 4
"""Samples on which another backend's float programs are compared with onnxruntime's."""
CALIBRATED = 128
"""Samples that ranges come from, unless the job says otherwise."""


def quantize_bundle(
    bundle: Path,
    out: Path,
    *,
    criteria: Criteria,
    calibration: Any,
    validation: Any,
    target: str = "cpu",
    samples: int = CALIBRATED,
    control: int | None = None,
    reference: Path | None = None,
    backend: str = ONNXRUNTIME,
    archive: bool = False,
    log: Log = silent,
) -> dict[str, Any]:
    """Write `bundle` in INT8 for `target` to `out`, with the operators in floating point that the tasks' limits need.

    Ranges come from the first `samples` samples of the split `calibration`, the decisions from the first `control`
    (None: all); `validation` is measured once, at the end. All metrics, and what decides, are of one thread in
    `backend`, one of `BACKENDS`: kernels round differently, so a limit is known to hold only where it was measured. The
    limits are ``max_drop`` of the tasks of `criteria`, against the metrics of the bundle `reference` (None: of
    `bundle`) on the same samples. A task whose limit `bundle` itself misses may lose as much again; no precision would
    help it.

    In a bundle of several widths every task keeps its limit with each encoder and each width of its decoder, against
    its metric there; `mtlc.export.quantization.width_points` names these points, which then stand where tasks do in the
    report. The written manifest has the metrics of the points in INT8, on the control samples.

    Returns the report: ``path``, ``bytes``, ``bytes_before``, ``target``, ``weights``, ``backend``, ``operators``
    (``int8``, ``float`` with the task for whose sake and its metric before and after, ``excluded`` with the reason),
    ``macs_int8`` (the share of multiply-accumulates in INT8), ``handed_over`` (tensors between programs that are in 8
    bits), ``tasks`` (metrics on control and validation samples: ``float``, ``int8_all``, ``int8``), ``configurations``
    (the points of each named configuration, by task; empty without widths), ``samples``, ``cost`` (how often what was
    measured) and ``missed`` (a line for each limit that is not kept on the validation split). The best effort is
    written whatever is missed.

    Raises `UserError` for a bundle that cannot be quantised and for samples that do not fit it, `VerificationError`
    where `backend` computes the float programs otherwise than onnxruntime, `Unavailable` without NNCF or the backend;
    nothing is written then.
    """
    aim = check_request(bundle, out, criteria, target, reference, backend, archive)
    with open_bundle(bundle) as opened:
        manifest, models = opened.manifest, _models(opened)
        criteria = criteria.restricted(manifest.tasks)
        manifest, criteria = unrolled(manifest), unrolled_criteria(criteria, manifest)
        run = _Run(manifest, models, criteria, aim, backend, log)
        if opened.manifest.widths is not None:
            run.share_weights()
        for file, model in models.items():
            fold_computed_weights(model, file)
        decided_on = len(calibration) if control is None else control
        data = CheckedBatches(manifest, calibration, BATCH, decided_on, CALIBRATION)
        checked = CheckedBatches(manifest, validation, BATCH, len(validation), "[quantize] the validation data")
        _check_floats((bundle, reference), backend, data[0][1])
        plain = Reached.of(Samples(run.plain(), checked).totals(criteria, tuple(manifest.tasks), keep=True))
        _check_finite(metrics_of(plain), "validation")
        log(f"INT8 for {aim.name}: ranges from {min(samples, len(calibration))} samples")
        run.quantize(_feeds(manifest, models, calibration, samples))
        references = None if reference is None else _reference(reference, criteria, backend)
        outcome, float_metrics, all_metrics, bounds = run.control(data, references, log)
        final = {file: onnx.ModelProto.FromString(model.SerializeToString()) for file, model in models.items()}
        final |= {file: graph.restored(outcome.floats[file]) for file, graph in run.graphs.items()}
        handed = round_edges_in_maker(manifest, final)
        if run.shared is not None:
            for model in final.values():
                run.shared.unfold(model)
        finished = replace(
            with_metrics(opened.manifest, outcome.metrics),
            quantization=Quantization("int8", aim.name, aim.weights),
            provenance={**manifest.provenance, "nncf": version("nncf")},
        )
        log("measuring the validation split")
        written, measured = publish(
            out,
            archive,
            lambda folder: _write(folder, finished, final),
            lambda path: _measured(path, checked, criteria, run.kernels, backend),
        )
        reached = Reached.of(measured)
        asked = asked_bounds(
            criteria, plain if references is None else Reached.of(references(checked, keep=True)), plain
        )
        limits = {task: bound.attainable(plain[task]) for task, bound in asked.items()}
        chances = int8_chances(plain, reached, limits)
        tasks: dict[str, dict[str, Any]] = {}
        for task in criteria.tasks:
            name = task.name
            tasks[name] = {
                "metric": task.metric,
                "unit": criteria.units[name],
                "higher_is_better": criteria.higher_is_better[name],
                "limit": None if task.max_drop is None else str(task.max_drop),
                "missed": missed_line(task, asked.get(name), plain[name], reached[name]),
                "control": {
                    "float": float_metrics[name],
                    "int8_all": all_metrics[name],
                    "int8": outcome.metrics[name],
                    **_judged(bounds.get(name), outcome.reached[name]),
                },
                "validation": {
                    "float": plain[name].metric,
                    "int8": reached[name].metric,
                    **_judged(limits.get(name), reached[name]),
                    **chances[name],
                },
            }
        return {
            "path": str(out),
            "bytes": sum(file.bytes for file in written.files.values()),
            "bytes_before": sum(file.bytes for file in manifest.files.values()),
            "target": aim.name,
            "weights": aim.weights,
            "backend": backend,
            "operators": run.operators(outcome),
            "macs_int8": run.share(outcome.floats),
            "handed_over": handed,
            "tasks": tasks,
            "configurations": by_configuration(opened.manifest),
            "samples": {"ranges": min(samples, len(calibration)), "control": data.samples},
            "cost": {"rankings": outcome.rankings, "measurements": 2 + outcome.measurements},
            "missed": [task["missed"] for task in tasks.values() if task["missed"] is not None],
        }


class _Run:
    """A bundle's graphs in floating point and quantised."""

    def __init__(
        self, manifest: Manifest, models: Models, criteria: Criteria, aim: Target, backend: str, log: Log
    ) -> None:
        self.manifest, self.models, self.criteria, self.aim, self.log = manifest, models, criteria, aim, log
        self.backend = backend
        self.graphs: dict[str, QuantizedGraph] = {}
        self.excluded: dict[str, dict[str, str]] = {}
        self.macs: dict[str, dict[str, int]] = {}
        self.shared: SharedInt8 | None = None
        # A processor that saturates would make the control give back what the target computes rightly.
        self.kernels = not wrong_here(aim)

    def plain(self) -> Execution:
        """The float graphs, in the backend that decides."""
        return Execution(self.manifest, self.models, backend=self.backend)

    def rounded(self, models: Models) -> Execution:
        """The float graphs but for the quantised `models`, in the backend that decides."""
        return Execution(self.manifest, self.models | models, self.kernels, self.backend)

    def share_weights(self) -> None:
        """Let all graphs take their weights from one INT8 copy of each."""
        self.shared = SharedInt8(self.aim)
        for file, model in self.models.items():
            self.shared.fold(file, model)

    def quantize(self, samples: Mapping[str, Sequence[Values]]) -> None:
        execution = Execution(self.manifest, self.models)
        for file, model in self.models.items():
            self.macs[file] = multiplications(execution, file, samples[file][0])
            chosen = deciders(model)
            multiplied = {node.name for node in model.graph.node if node.op_type in MULTIPLIERS}
            self.excluded[file] = dict.fromkeys(chosen & multiplied, "it decides a discrete choice")
            if multiplied <= chosen:
                continue
            chosen |= unrounded(model, results(self.manifest, file))
            self.log(f"quantising {file}")
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            paired, shared = quantize_graph(copy, file, samples[file], self.aim, chosen), self.shared
            graph = QuantizedGraph(model, paired) if shared is None else shared.round(file, model, paired)
            refused = self._refused(file, graph, samples[file][0])
            if refused is not None:
                self.log(f"{file} stays in floating point: {refused}")
                self.excluded[file] |= dict.fromkeys(multiplied - chosen, f"in INT8 {refused}")
                continue
            if self.aim.symmetric:
                others = [name for name in graph.operators if graph.kind(name) not in MULTIPLIERS]
                self.excluded[file] |= dict.fromkeys(others, f"{self.aim.name} gets INT8 multiplications only")
            self.graphs[file] = graph
        if not any(graph.operators for graph in self.graphs.values()):
            reasons = sorted({why for found in self.excluded.values() for why in found.values()})
            because = f": {reasons[0]}" if reasons else ""
            raise UserError(f"the bundle has no operator that can be quantised{because}")

    def _refused(self, file: str, graph: QuantizedGraph, inputs: Values) -> str | None:
        """Why the quantised graph cannot be used where it will be measured, in a line; None where it can.

        The graph is run: onnxruntime finds some faults when it computes, not when it loads. With INT8 kernels and
        without, since a processor that saturates measures without, and the bundle's user does not.
        """
        model = graph.restored(self.excluded[file])
        program = next(program for program in self.manifest.programs if program.file == file)
        outputs = [program.names.get(name, name) for name in program.outputs]
        for kernels, backend in dict.fromkeys([(True, ONNXRUNTIME), (self.kernels, self.backend)]):
            try:
                loaded = Execution(self.manifest, {file: model}, kernels, backend)
                arrays = loaded.run_file(file, outputs, inputs)
            except UserError as error:
                return str(error)
            if not all(np.isfinite(array).all() for array in arrays):
                return f"its outputs are not finite in {backend}"
        return None

    def control(
        self, data: Sequence[tuple[Any, Values]], references: Callable[..., MetricTotals] | None, log: Log
    ) -> tuple[Outcome, dict[str, float], dict[str, float], dict[str, Bound]]:
        """Give back precision on `data`; the outcome, metrics in float and with all quantised, the bounds."""
        tasks = tuple(self.manifest.tasks)
        floats = {file: set(self.excluded[file]) & set(graph.operators) for file, graph in self.graphs.items()}
        start = {file: graph.restored(floats[file]) for file, graph in self.graphs.items()}
        plain = Samples(self.plain(), data).reached(self.criteria, tasks)
        _check_finite(metrics_of(plain), "calibration")
        asked = asked_bounds(self.criteria, plain if references is None else Reached.of(references(data)), plain)
        bounds = {task: bound.attainable(plain[task]) for task, bound in asked.items()}
        samples = Samples(self.rounded(start), data)
        everything = samples.reached(self.criteria, tasks)
        few = [_first(batch, inputs, RANKED) for batch, inputs in data[:1]]
        ranked = Samples(self.rounded(start), few)
        exact = Samples(self.plain(), few)
        wanted = [outputs for _, outputs in exact.outputs(tasks, ())]
        found = Control(self.graphs, self.criteria, samples, ranked, wanted, floats, log).run(bounds, everything)
        return found, metrics_of(plain), metrics_of(everything), bounds

    def operators(self, outcome: Outcome) -> dict[str, Any]:
        """Counts of operators, and a row for each that is in floating point."""
        programs = {program.file: program.name.partition("@")[0] for program in reversed(self.manifest.programs)}
        quantised = sum(len(graph.operators) - len(outcome.floats[file]) for file, graph in self.graphs.items())
        return {
            "int8": quantised,
            "float": [
                {
                    "program": programs[step.file],
                    "operator": step.operator,
                    "kind": self.graphs[step.file].kind(step.operator),
                    "task": step.task,
                    "before": step.before if math.isfinite(step.before) else None,
                    "after": step.after if math.isfinite(step.after) else None,
                }
                for step in outcome.steps
            ],
            "excluded": [
                {"program": programs[file], "operator": name, "why": why}
                for file, reasons in self.excluded.items()
                for name, why in sorted(reasons.items())
            ],
            **({"errors": self._errors(outcome, programs)} if outcome.shares else {}),
        }

    @staticmethod
    def _errors(outcome: Outcome, programs: Mapping[str, str]) -> list[dict[str, Any]]:
        """What each operator that was ranked adds to the error of tasks."""
        return [
            {"program": programs[file], "operator": name, "shares": shares}
            for (file, name), shares in outcome.shares.items()
        ]

    def share(self, floats: Mapping[str, set[str]]) -> float:
        """The share of the multiply-accumulates of all files that operators in INT8 do; a file counts once."""
        total = sum(sum(counts.values()) for counts in self.macs.values())
        done = sum(
            self.macs[file].get(name, 0)
            for file, graph in self.graphs.items()
            for name in graph.operators
            if name not in floats[file]
        )
        return done / total if total else 0.0


def _check_floats(bundles: Iterable[Path | None], backend: str, inputs: Values) -> None:
    """Raise `VerificationError` where `backend` computes a float program otherwise than onnxruntime does.

    Limits that were measured in it against itself would be kept, and mean nothing.
    """
    if backend != ONNXRUNTIME:
        few = {name: array[:COMPARED] for name, array in inputs.items()}
        for path in bundles:
            if path is not None:
                compare_programs(path, backend, samples=[few])


def _check_finite(metrics: Mapping[str, float], split: str) -> None:
    for task, value in metrics.items():
        if not math.isfinite(value):
            raise UserError(f"task {task!r}: its metric on the {split} split is {value}; look at its labels")


def _models(opened: OpenBundle) -> Models:
    """The graphs of all files, with their weights."""
    return {program.file: onnx.load(opened.file(program.file)) for program in opened.manifest.programs}


def _feeds(manifest: Manifest, models: Models, split: Any, count: int) -> dict[str, list[Values]]:
    """What each file is fed with on the first `count` samples, one at a time: for all tasks that share it."""
    execution = Execution(manifest, models)
    found: dict[str, list[Values]] = {file: [] for file in models}
    for _, inputs in checked_batches(manifest, split, 1, count):
        values = dict(inputs)
        for program in manifest.programs:
            found[program.file].append(feeds(program, values))
            values |= execution.run(program, values)
    return found


def _reference(path: Path, criteria: Criteria, backend: str) -> Callable[..., MetricTotals]:
    """The metrics of the tasks in the bundle at `path` on some batches, as `Samples.totals` keeps them."""
    with open_bundle(path) as opened:
        manifest, models = opened.manifest, _models(opened)
    names = [task.name for task in criteria.tasks]

    def measured(data: Sequence[tuple[Any, Values]], keep: bool = False) -> MetricTotals:
        return Samples(Execution(manifest, models, backend=backend), data).totals(criteria, names, keep=keep)

    return measured


def _judged(bound: Bound | None, reached: Reached) -> dict[str, Any]:
    return {"bound": None, "within": None} if bound is None else bound.judged(reached)


def _write(folder: Path, manifest: Manifest, models: Models) -> Manifest:
    """Write the bundle; the weights leave `models`."""
    with WeightsFile(folder / WEIGHTS) as weights:
        for file, model in models.items():
            name_pairs(model)
            weights.externalize(model)
            (folder / file).write_bytes(model.SerializeToString(deterministic=True))
    if (folder / WEIGHTS).stat().st_size == 0:
        (folder / WEIGHTS).unlink()
    write_decoders(folder, manifest.tasks)
    manifest = replace(manifest, files={path.name: file_info(path) for path in sorted(folder.iterdir())})
    write_manifest(folder, manifest)
    return manifest


def _measured(
    path: Path, data: Sequence[tuple[Any, Values]], criteria: Criteria, kernels: bool, backend: str
) -> MetricTotals:
    """The metrics of the bundle as it was written."""
    with open_bundle(path) as opened:
        manifest = unrolled(opened.manifest)
        execution = Execution(manifest, _models(opened), kernels, backend)
        return Samples(execution, data).totals(criteria, tuple(manifest.tasks), keep=True)


def _first(batch: Any, inputs: Values, count: int) -> tuple[Any, Values]:
    return {name: value[:count] for name, value in batch.items()}, {n: a[:count] for n, a in inputs.items()}
