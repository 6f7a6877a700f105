"""Checks whether a bundle is whole, and whether it computes what the network does: ``mtlc verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlc.errors import UserError
from mtlc.results.verify import VerifyResult

if TYPE_CHECKING:
    from mtlc.job.job import Job


def verify(
    bundle: Path, against: Path | None = None, job: Path | Job | None = None, tolerance: float | None = None
) -> VerifyResult:
    """Open the bundle (checksums, schema, operators), and compare it with the checkpoint `against` on calibration data.

    Without `against`, the base install is enough. Raises `BundleError` for a bundle that is not whole and
    `VerificationError` for one that computes something else.
    """
    from mtlc.runtime import open_bundle

    with open_bundle(bundle) as opened:
        manifest = opened.manifest
    result: dict[str, Any] = {
        "bundle": str(bundle),
        "files": len(manifest.files),
        "bytes": sum(file.bytes for file in manifest.files.values()),
        "tasks": list(manifest.tasks),
        "compared": None,
    }
    if against is None:
        if job is not None or tolerance is not None:
            raise UserError(
                "--job and --tolerance need something to compare with: OTHER, --backend, or --against a checkpoint"
            )
        return VerifyResult.model_validate(result)
    if job is None:
        raise UserError("--against needs --job: the job names the data to run, and the factory that may be built")
    from mtlc.export.bundle.verify import verify_bundle
    from mtlc.workflows.opened_job import calibration_batch, open_target

    reference = open_target(against, job)
    tolerance = tolerance if tolerance is not None else reference.job.file.export.tolerance or TOLERANCE
    samples = calibration_batch(reference, 0, SAMPLES)
    result["compared"] = verify_bundle(bundle, reference.program, samples, tolerance=tolerance)
    return VerifyResult.model_validate(result)


SAMPLES = 8
"""How many calibration samples a bundle is compared on; a smaller split is gone through again."""
TOLERANCE = 1e-4
"""What an export allows where the job says nothing: float32 rounding, relative to an output's largest value."""
