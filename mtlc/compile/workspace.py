"""What several verbs begin with: a job with its data and network, and an output folder that is ours alone."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mtlc.data import Splits
from mtlc.errors import UserError
from mtlc.evaluation import Criteria
from mtlc.files import user_errors
from mtlc.job import Job
from mtlc.program import Program

try:
    import fcntl
except ImportError:  # not on Windows, where two runs in one folder are the user's to avoid
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Opened:
    """A job with everything that it names: the data, the network with its weights, the losses and metrics."""

    job: Job
    splits: Splits
    program: Program
    criteria: Criteria


def open_job(job: Job, *, weights: bool = True) -> Opened:
    """Load what the job names and try it on one sample. Raises `UserError` for whatever does not fit together."""
    import torch

    from mtlc.data import fetch

    criteria = Criteria(job.tasks)
    splits = job.load_splits()
    program = job.build_program(splits, weights=weights)
    batch = fetch(splits.calibration, [0])
    with torch.inference_mode():
        criteria.losses(program.outputs(batch), batch)
    return Opened(job, splits, program, criteria)


@contextmanager
def output_folder(out: Path) -> Iterator[Path]:
    """`out`, made if need be and locked while the block runs; what killed runs left half-written in it is removed.

    Raises `UserError` if it cannot be written or another run is using it.
    """
    with user_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"{out}: another run is using this folder; wait for it, or choose another --out"
                ) from None
        _remove_leftovers(out)
        yield out
    finally:
        with contextlib.suppress(OSError):
            (out / ".lock").unlink()
        for folder in [*out.glob("work/*"), out / "work", out / "steps", out]:
            with contextlib.suppress(OSError):
                folder.rmdir()  # succeeds only where nothing was written: bad input leaves no empty folders behind
        os.close(descriptor)


def _remove_leftovers(out: Path) -> None:
    """Temporary folders of atomic writes that a kill interrupted (see `mtlc.files`)."""
    for folder in (out, out / "steps"):
        for leftover in [*folder.glob(".*.new"), *folder.glob(".*.old")]:
            shutil.rmtree(leftover, ignore_errors=True)
