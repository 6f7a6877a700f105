"""Writes a network in a format that something else runs: ``mtlc export``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlc.errors import UserError
from mtlc.job.job import Job
from mtlc.log import Log, silent
from mtlc.results.rtl import EngineShape, ExportedFile, ExportedLayerSummary, FpgaExport, Int8Metric
from mtlc.workflows.opened_job import Opened, calibration_batch, one_task, open_target, with_task

if TYPE_CHECKING:
    from mtlc.hw.rtl.layout import ExportedLayer


@dataclass(frozen=True)
class FpgaOptions:
    """How experts become files for the engine. None and () leave it to `export`.

    `array`: ``"8x8"``, rows × columns. `samples`: calibration samples that scales follow from; the one behind them is
    the recorded frame. `floor_db`: the least signal to quantisation noise of a layer. `no_metric`: do not measure what
    INT8 experts do to the task on the validation split.
    """

    task: str | None = None
    layers: tuple[str, ...] = ()
    array: str | None = None
    samples: int | None = None
    floor_db: float | None = None
    no_metric: bool = False


def export(
    target: Path | Job, out: Path, form: str, job: Path | Job | None = None, fpga: FpgaOptions | None = None,
    log: Log = silent,
) -> FpgaExport | dict[str, Any]:  # fmt: skip
    """Write the network of `target`, a job or a checkpoint (with `job`), to `out` as `form`, one of `FORMATS`.

    Raises `UserError` for bad input, and `VerificationError` if what would be written computes something else: then
    nothing is.
    """
    options = fpga or FpgaOptions()
    if form != "fpga" and options != FpgaOptions():
        given = next(f.name for f in fields(options) if getattr(options, f.name) != f.default)
        raise UserError(
            f"--{given.replace('layers', 'layer').replace('_', '-')} is an option of --format fpga, not {form}"
        )
    opened = open_target(target, job)
    return FORMATS[form](opened, out, options, log)


def array_of(text: str) -> tuple[int, int]:
    """(rows, columns) of ``"8x8"``. Raises `UserError`."""
    rows, x, columns = text.lower().partition("x")
    if not (x and rows.isdigit() and columns.isdigit()):
        raise UserError(f"--array {text}: must be rows x columns, such as 8x8")
    return int(rows), int(columns)


def _onnx(opened: Opened, out: Path, _options: FpgaOptions, log: Log) -> dict[str, Any]:
    from mtlc.workflows.export_job import export_program

    log("exporting and verifying")
    return {"format": "onnx", **export_program(opened, opened.program, out)}


def _fpga(opened: Opened, out: Path, options: FpgaOptions, log: Log) -> FpgaExport:
    from mtlc.export.bundle.write_bundle import provenance_of
    from mtlc.hw.rtl.export_experts import FLOOR_DB, export_experts, quantised_layers
    from mtlc.hw.rtl.layout import check_folder

    check_folder(out)
    task = one_task(opened, options.task)
    opened = with_task(opened, task)
    array = array_of(options.array or "8x8")
    samples = min(options.samples or SAMPLES, max(1, len(opened.splits.calibration) - 1))
    log(f"calibrating on {samples} samples, recording the frame behind them")
    layers = quantised_layers(
        opened.program, task, calibration_batch(opened, 0, samples), calibration_batch(opened, samples, 1),
        options.layers,
    )  # fmt: skip
    floor = FLOOR_DB if options.floor_db is None else options.floor_db
    about = {"job": opened.job.path.name, "seed": opened.job.seed, "calibration_samples": samples}
    layout = export_experts(out, task, layers, array, floor, provenance_of(opened.program, about))
    metric = None
    if not options.no_metric:
        log("evaluating the task with INT8 experts on the validation split")
        metric = _metric(opened, layers)
    return FpgaExport(
        format="fpga",
        path=str(out),
        task=task,
        array=list(array),
        engine=EngineShape(**layout["engine"]),
        bytes=sum(file["bytes"] for file in layout["files"].values()),
        files={name: ExportedFile(**file) for name, file in layout["files"].items()},
        calibration_samples=samples,
        floor_db=floor,
        layers=[
            ExportedLayerSummary(
                layer=entry["path"],
                experts=entry["experts"],
                routed=len(entry["row"]),
                weights_bytes=sum(one["expert_bytes"] * entry["experts"] for one in entry["matrices"].values()),
                places=entry["frame"]["outputs"]["shape"][0],
                signal_to_quantisation_noise_db=entry["signal_to_quantisation_noise_db"],
            )
            for entry in layout["layers"]
        ],
        metric=metric,
    )


def _metric(opened: Opened, layers: Sequence[ExportedLayer]) -> Int8Metric:
    from mtlc.evaluation.evaluate import evaluate
    from mtlc.hw.rtl.expert_calls import in_int8

    (task,) = opened.program.tasks
    before = evaluate(opened.program, opened.criteria, opened.splits.validation)
    with in_int8(opened.program, {layer.path: layer.experts for layer in layers}):
        after = evaluate(opened.program, opened.criteria, opened.splits.validation)
    return Int8Metric(
        kind="measured",
        name=task.metric,
        unit=opened.criteria.units[task.name],
        higher_is_better=opened.criteria.higher_is_better[task.name],
        float_experts=before.metrics[task.name],
        int8_experts=after.metrics[task.name],
        samples=len(opened.splits.validation),
    )


FORMATS: dict[str, Callable[[Opened, Path, FpgaOptions, Log], FpgaExport | dict[str, Any]]] = {
    "onnx": _onnx,
    "fpga": _fpga,
}
"""The formats by name; the command line's ``--format`` offers these."""
SAMPLES = 32
"""Calibration samples where none are given."""
