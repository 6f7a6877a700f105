"""``mtlc quantize``, and the same step of ``mtlc run``: a bundle in INT8, each task within its own limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mtlc.data import Splits
from mtlc.errors import UserError
from mtlc.evaluation import Criteria
from mtlc.export.quantization import quantize_bundle
from mtlc.hw.devices import this_machine
from mtlc.job import Job
from mtlc.job_file import QuantizeSection

Log = Callable[[str], None]


def quantize(
    bundle: Path,
    job: Job,
    out: Path,
    target: str | None = None,
    against: Path | None = None,
    *,
    html: Path | None = None,
    log: Log = lambda line: None,
) -> dict[str, Any]:
    """Write `bundle` in INT8 to `out` (an archive if its name ends in ``.mtlc``), as the job's ``[quantize]`` says.

    `target` stands in for the job's. Limits are measured against the bundle `against`, without one against `bundle`.
    `html` is a page of what was found to write, outside the bundles.

    Returns what `quantize_bundle` does, with ``bundle``, ``against`` and ``job`` (their paths), ``versions`` and
    ``device``. Raises what it raises, and `UserError` for a page that cannot be written.
    """
    if html is not None:
        _check_page(html, [path for path in (bundle, out, against) if path is not None])
    criteria = Criteria(job.tasks)
    log("reading the data")
    section = job.file.quantize or QuantizeSection()
    result = {
        "bundle": str(bundle),
        "against": None if against is None else str(against),
        "job": str(job.path),
        "versions": {name: version(name) for name in ("nncf", "onnxruntime")},
        "device": this_machine(),
        **quantize_with(section, bundle, out, criteria, job.load_splits(), target, against, log),
    }
    if html is not None:
        from mtlc.hw.report_quantization import write_quantization_page

        write_quantization_page(result, html)
    return result


def _check_page(html: Path, bundles: Sequence[Path]) -> None:
    """Refuse, before anything is computed, a page that cannot be written or would lie in a bundle."""
    for path in bundles:
        if html.resolve().is_relative_to(path.resolve()):
            raise UserError(f"--html {html}: lies in the bundle {path}: name a file outside of it")
    if html.is_dir():
        raise UserError(f"--html {html}: is a folder: name a file, such as {html / 'quantization.html'}")


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
        archive=out.suffix == ".mtlc", log=log,
    )  # fmt: skip
