"""``mtlc quantize``, and the same step of ``mtlc run``: a bundle in INT8, each task within its own limit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtlc.data import Splits
from mtlc.evaluation import Criteria
from mtlc.export.quantization import check_request, quantize_bundle
from mtlc.job import Job
from mtlc.job_file import QuantizeSection

Log = Callable[[str], None]


def quantize(
    bundle: Path,
    job: Job,
    out: Path,
    target: str | None = None,
    against: Path | None = None,
    backend: str | None = None,
    *,
    log: Log = lambda line: None,
) -> dict[str, Any]:
    """Write `bundle` in INT8 to `out` (an archive if its name ends in ``.mtlc``), as the job's ``[quantize]`` says.

    `target` and `backend` stand in for the job's. Limits are measured against the bundle `against`, without one against `bundle`.
    Returns and raises what `quantize_bundle` does.
    """
    criteria = Criteria(job.tasks)
    section = job.file.quantize or QuantizeSection()
    if backend is not None:
        section = section.model_copy(update={"backend": backend})
    check_request(bundle, out, criteria, target or section.target, against, section.backend, out.suffix == ".mtlc")
    log("reading the data")
    return quantize_with(section, bundle, out, criteria, job.load_splits(), target, against, log)


def quantize_with(
    section: QuantizeSection,
    bundle: Path,
    out: Path,
    criteria: Criteria,
    splits: Splits,
    target: str | None,
    against: Path | None,
    log: Log,
) -> dict[str, Any]:
    """`quantize` with what the job names at hand."""
    return quantize_bundle(
        bundle, out, criteria=criteria, calibration=splits.calibration, validation=splits.validation,
        target=target or section.target, samples=section.samples, control=section.control, reference=against,
        backend=section.backend, archive=out.suffix == ".mtlc", log=log,
    )  # fmt: skip
