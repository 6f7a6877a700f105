"""Writes a bundle in INT8, each task within its own limit: ``mtlc quantize``, and the same step of ``mtlc run``."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits
from mtlc.export.bundle.publish import check_outside
from mtlc.export.quantization import check_request, quantize_bundle
from mtlc.files import check_writable
from mtlc.hw.measure.this_machine import this_machine
from mtlc.job.job import Job
from mtlc.job.schema import QuantizeSection
from mtlc.log import Log, silent
from mtlc.results.quantize import QuantizeResult
from mtlc.workflows.job_as_run import overrides_of


def quantize(
    bundle: Path,
    job: Job,
    out: Path,
    target: str | None = None,
    against: Path | None = None,
    backend: str | None = None,
    *,
    html: Path | None = None,
    log: Log = silent,
) -> QuantizeResult:
    """Write `bundle` in INT8 to `out` (an archive if its name ends in ``.mtlc``), as the job's ``[quantize]`` says.

    `target` and `backend` stand in for the job's. Limits are measured against the bundle `against`, without one against
    `bundle`. `html` is a page of what was found to write, outside of the bundles.

    Returns what `quantize_bundle` does, with ``bundle``, ``against`` and ``job`` (their paths), ``versions`` and
    ``device``. Raises what it raises, and `UserError` for a page that cannot be written.
    """
    section, criteria = job.file.quantize or QuantizeSection(), Criteria(job.tasks)
    if backend is not None:
        section = section.model_copy(update={"backend": backend})
    _check_places(bundle, out, against, html)
    check_request(bundle, out, criteria, target or section.target, against, section.backend, _archive(out))
    versions = {name: version(name) for name in ("nncf", section.backend)}
    log("reading the data")
    found = QuantizeResult.model_validate(
        {
            "bundle": str(bundle),
            "against": None if against is None else str(against),
            "job": str(job.path),
            **overrides_of(job),
            "versions": versions,
            "device": this_machine(),
            **quantize_with(section, bundle, out, criteria, job.load_splits(log), target, against, log),
        }
    )
    if html is not None:
        from mtlc.report.sections.int8 import write_quantization_page

        write_quantization_page(found, html)
    return found


def _check_places(bundle: Path, out: Path, against: Path | None, html: Path | None) -> None:
    """Refuse to write into what is read, and a page that cannot be written."""
    bundles = [bundle] if against is None else [bundle, against]
    for made, read in [(out, path) for path in bundles] + [(html, path) for path in [*bundles, out]]:
        if made is None:
            continue
        if made.resolve() == read.resolve():
            raise UserError(f"{made}: is the bundle {read}: name another place")
        check_outside(made, read)
    if html is not None:
        if html.is_dir():
            raise UserError(f"--html {html}: is a folder: name a file, such as {html / 'int8.html'}")
        check_writable(html)


def _archive(out: Path) -> bool:
    return out.suffix == ".mtlc"


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
        backend=section.backend, archive=_archive(out), log=log,
    )  # fmt: skip
