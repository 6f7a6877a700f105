"""``mtlc quantize``, and the same step of ``mtlc run``: a bundle in INT8, each task within its own limit."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mtlc.data import Splits
from mtlc.errors import UserError, nearest
from mtlc.evaluation import Criteria
from mtlc.export.publishing import check_target
from mtlc.export.quantization import quantize_bundle
from mtlc.export.quantization.targets import resolve_target
from mtlc.files import check_writable
from mtlc.hw.devices import this_machine
from mtlc.job import Job
from mtlc.job_file import QuantizeSection
from mtlc.runtime import open_bundle

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
    `html` is a page of what was found to write, outside of the bundles.

    Returns what `quantize_bundle` does, with ``bundle``, ``against`` and ``job`` (their paths), ``versions`` and
    ``device``. Raises what it raises, and `UserError` for a page that cannot be written.
    """
    section = job.file.quantize or QuantizeSection()
    _check(bundle, job, out, target or section.target, against, html)
    versions = {name: version(name) for name in ("nncf", "onnxruntime")}
    criteria = Criteria(job.tasks)
    log("reading the data")
    result = {
        "bundle": str(bundle),
        "against": None if against is None else str(against),
        "job": str(job.path),
        "versions": versions,
        "device": this_machine(),
        **quantize_with(section, bundle, out, criteria, job.load_splits(), target, against, log),
    }
    if html is not None:
        from mtlc.hw.report_quantization import write_quantization_page

        write_quantization_page(result, html)
    return result


def _check(bundle: Path, job: Job, out: Path, target: str, against: Path | None, html: Path | None) -> None:
    """Refuse what can be told before the data are read, which may take long."""
    bundles = [bundle] if against is None else [bundle, against]
    for option, made in (("--out", out), ("--html", html)):
        for path in bundles if option == "--out" else [*bundles, out]:
            if made is not None and made.resolve().is_relative_to(path.resolve()):
                where = "is" if made.resolve() == path.resolve() else "lies in"
                raise UserError(f"{option} {made}: {where} the bundle {path}: name another place")
    check_target(out, _archive(out))
    if html is not None:
        if html.is_dir():
            raise UserError(f"--html {html}: is a folder: name a file, such as {html / 'int8.html'}")
        check_writable(html)
    resolve_target(target)
    with open_bundle(bundle) as opened:
        manifest = opened.manifest
    if manifest.engines or manifest.openvino is not None:
        built = "TensorRT engines" if manifest.engines else "OpenVINO IR"
        raise UserError(f"{bundle}: holds {built} of the float graphs: quantise the bundle that `mtlc build` was given")
    known = [task.name for task in job.tasks]
    for task in manifest.tasks:
        if task not in known:
            raise UserError(f"{bundle}: its task {task!r} is not one of {job.path}{nearest(task, known)}")
    if against is not None:
        with open_bundle(against) as opened:
            for task in manifest.tasks:
                if task not in opened.manifest.tasks:
                    raise UserError(f"--against {against}: has no task {task!r} to measure limits against")


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
        archive=_archive(out), log=log,
    )  # fmt: skip
