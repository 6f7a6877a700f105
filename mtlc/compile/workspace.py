"""What several verbs begin with: a job with its data and network, and an output folder that is ours alone."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mtlc.data import Splits
from mtlc.errors import UserError
from mtlc.evaluation import Criteria
from mtlc.files import make_folder, user_errors
from mtlc.job import Job
from mtlc.program import Program

if TYPE_CHECKING:
    from mtlc.compile.device_profile import Found

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


def check_devices(job: Job) -> list[Found]:
    """The devices of the report, local ones as they are and others as models.

    Refuses devices that are not there or cannot be costed, and a budget in milliseconds on a device where nothing can be
    measured, before hours of work and not after. Raises `UserError` naming the key.
    """
    from mtlc.compile.device_profile import costed_devices
    from mtlc.hw.devices import device, local_device

    found: list[Found] = []
    try:
        if job.file.budget is not None and job.file.budget.device is not None:
            key = "[budget] device"
            local_device(job.resolve_device(job.file.budget.device))
        key = "[report] devices"
        for name in map(job.resolve_device, job.file.report.devices):
            try:
                found += costed_devices([name])
            except UserError:
                if "dsp" not in device(name).resources:
                    raise
                # An FPGA without a roofline: simulated, if the network turns out to be one that its model knows.
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    return found


def read_baselines(job: Job) -> dict[str, float] | None:
    """The metrics of single-task networks by task: ``{"depth": 0.6}``, or the same under a key ``"metrics"``."""
    if job.file.report.baselines is None:
        return None
    path = job.resolve_path(job.file.report.baselines)
    try:
        values = json.loads(path.read_text())
        values = values.get("metrics", values)
        found = {task.name: float(values[task.name]) for task in job.tasks}
    except FileNotFoundError:
        raise UserError(f"[report] baselines: {path} does not exist") from None
    except KeyError as error:
        raise UserError(f"[report] baselines: {path} has no metric for task {error}") from None
    except (OSError, ValueError, TypeError, AttributeError):
        raise UserError(f'[report] baselines: {path} must be JSON such as {{"depth": 0.6}}') from None
    for task, value in found.items():
        if not math.isfinite(value):
            raise UserError(f"[report] baselines: {path}: the metric of task {task!r} is {value}")
    return found


@contextmanager
def output_folder(out: Path) -> Iterator[Path]:
    """`out`, made if need be and locked while the block runs; what killed runs left half-written in it is removed.

    Raises `UserError` if it cannot be written or another run is using it.
    """
    make_folder(out)
    with user_errors(out):
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
