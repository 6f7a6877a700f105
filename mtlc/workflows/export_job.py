"""Exports a program as the job's ``[export]`` section says, with real samples to verify it on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mtlc.evaluation.splits import fetch
from mtlc.export import export_bundle
from mtlc.job.schema import ExportSection
from mtlc.program.program import Program
from mtlc.workflows.opened_job import Opened
from mtlc.workflows.verify import TOLERANCE

_VERIFIED_SAMPLES = 8
_BATCHES = (slice(0, 1), slice(1, 4))


def samples_of(opened: Opened) -> dict[str, Tensor]:
    """Real inputs for verification, from the calibration split; a small split is gone through again."""
    split = opened.splits.calibration
    batch = fetch(split, [index % len(split) for index in range(_VERIFIED_SAMPLES)])
    return {name: batch[name] for name in opened.program.inputs}


def export_program(opened: Opened, program: Program, path: Path) -> dict[str, Any]:
    """A bundle of `program` at `path`, as the job's ``[export]`` says; an archive has ``.mtlc`` after its name."""
    section = opened.job.file.export
    report = export_bundle(
        program, path.with_name(path.name + (".mtlc" if section.archive else "")), samples=samples_of(opened),
        criteria=opened.criteria.restricted(program.task_names),
        fuse=section.fuse, archive=section.archive, tolerance=section.tolerance or TOLERANCE,
        experts=section.experts, backend=section.backend, batch=section.batch,
        provenance={"job": opened.job.path.name, "seed": opened.job.seed},
    )  # fmt: skip
    return add_formats(section, report, samples_of(opened))


def add_formats(section: ExportSection, report: dict[str, Any], samples: Mapping[str, Tensor]) -> dict[str, Any]:
    """Add them to the bundle that an export has written, in its place; the report of the export with what they add.

    What is added is compared with the ONNX on `samples`. Raises `VerificationError` where it computes something else:
    the bundle stays as it was.
    """
    if "openvino" not in section.formats:
        return report
    from mtlc.export.openvino.ir import write_ir

    path = Path(report["path"])
    arrays = {name: tensor.cpu().numpy() for name, tensor in samples.items()}
    batches = [{name: np.ascontiguousarray(array[part]) for name, array in arrays.items()} for part in _BATCHES]
    added = write_ir(path, path, half=section.half, samples=batches, tolerance=section.tolerance or TOLERANCE)
    return {**report, "bytes": added["bytes"], "openvino": added}
