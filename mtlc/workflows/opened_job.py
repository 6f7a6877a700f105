"""Opens a job with its data and network, and reads what else it names: what several verbs begin with."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from mtlc.errors import UserError, nearest
from mtlc.evaluation.criteria import Criteria, no_labels
from mtlc.evaluation.splits import Batch, Splits, fetch
from mtlc.job.job import Job, load_job
from mtlc.log import Log, silent
from mtlc.program.program import Program

if TYPE_CHECKING:
    from mtlc.workflows.device_times import Found


_LOOKED_AT = 64
"""Samples in which a label is looked for that the first one lacks."""


@dataclass(frozen=True)
class Opened:
    """A job with everything that it names: the data, the network with its weights, the losses and metrics."""

    job: Job
    splits: Splits
    program: Program
    criteria: Criteria


def open_job(job: Job, *, weights: bool = True, log: Log = silent) -> Opened:
    """Load what the job names and try it on one sample. Raises `UserError` for whatever does not fit together."""
    import torch

    from mtlc.evaluation.output_shapes import check_output_shapes
    from mtlc.evaluation.splits import fetch

    criteria = Criteria(job.tasks)
    Criteria(job.auxiliary)  # so that a loss that is not there shows now
    splits = job.load_splits(log)
    program = job.build_program(splits, weights=weights)
    batch = fetch(splits.calibration, [0])
    outputs = check_output_shapes(program, batch)
    with torch.no_grad(), _of_first_sample(splits):
        criteria.losses(outputs, batch)
        _try_missing(criteria, program, splits, batch)
    return Opened(job, splits, program, criteria)


def _try_missing(criteria: Criteria, program: Program, splits: Splits, batch: Batch) -> None:
    """Try the losses that the first sample has no label for on others, a few spread over the calibration split.

    Raises `UserError` where no sample of the split has one; in a large one that shows when all labels are checked.
    """
    split, keys = splits.calibration, set(batch)
    missing = [task for task in criteria.tasks if task.target_key not in batch]
    count = min(_LOOKED_AT, len(split))
    for place in range(count if missing else 0):
        other = fetch(split, [place * len(split) // count])
        keys |= set(other)
        for task in [task for task in missing if task.target_key in other]:
            criteria.loss(task, program.outputs_on_data(other)[task.name], other)
            missing.remove(task)
        if not missing:
            return
    if missing and count == len(split):
        raise no_labels(missing[0], keys, "the calibration split")


@contextmanager
def _of_first_sample(splits: Splits) -> Iterator[None]:
    """Name the sample in what does not fit it."""
    try:
        yield
    except UserError as error:
        place = splits.calibration.place(0) if hasattr(splits.calibration, "place") else "calibration sample 0"
        raise UserError(f"[data] {place}: {error}") from error


def check_devices(job: Job) -> list[Found]:
    """The devices of the report, local ones as they are and others as models.

    Refuses devices that are not there or cannot be costed, and a budget in milliseconds on a device where nothing can
    be measured, before hours of work and not after. Raises `UserError` naming the key.
    """
    from mtlc.hw.devices.catalogue import device, local_device
    from mtlc.workflows.device_times import costed_devices

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
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        raise UserError(f'[report] baselines: {path} must be JSON such as {{"depth": 0.6}}') from None
    for task, value in found.items():
        if not math.isfinite(value):
            raise UserError(f"[report] baselines: {path}: the metric of task {task!r} is {value}")
    return found


def open_target(target: Path | Job, job: Path | Job | None = None) -> Opened:
    """A job file; or a checkpoint or the output folder of a run, with the `job` that names its data and factory.

    Raises `UserError` where `target` is none of them.
    """
    if isinstance(target, Job) or (target.suffix == ".toml" and target.is_file()):
        if job is not None:
            raise UserError(f"--job is for a checkpoint: {target} is a job itself")
        return open_job(load_job(target))
    folder = target / "program" if (target / "program" / "program.json").is_file() else target
    if not (folder / "program.json").is_file():
        raise UserError(f"{target}: neither a job nor a checkpoint (no program.json)")
    if job is None:
        raise UserError(f"{target}: a checkpoint needs --job: the job that names its data and its factory")
    loaded = load_job(job)
    program = Program.load(folder, loaded.source)
    known = {task.name for task in loaded.tasks}
    for name in program.task_names:
        if name not in known:
            raise UserError(f"--job: {job} has no task {name!r}, which the checkpoint has{nearest(name, known)}")
    return Opened(loaded, loaded.load_splits(), program, Criteria(loaded.tasks).restricted(program.task_names))


def one_task(opened: Opened, task: str | None) -> str:
    """The task asked for. Raises `UserError` for one that is not there, and for none where there are several."""
    names = opened.program.task_names
    if task is None and len(names) == 1:
        return names[0]
    if task is None:
        raise UserError(f"--task: name one of {', '.join(names)}")
    if task not in names:
        raise UserError(f"--task: the network has no task {task!r}{nearest(task, names)}")
    return task


def with_task(opened: Opened, task: str) -> Opened:
    """The same, with the network reduced to one task."""
    return replace(opened, program=opened.program.restricted([task]), criteria=opened.criteria.restricted([task]))


def calibration_batch(opened: Opened, start: int, count: int) -> Mapping[str, Tensor]:
    """The network's inputs of `count` samples of the calibration split from `start` on; a small split begins again."""
    split = opened.splits.calibration
    batch = fetch(split, [index % len(split) for index in range(start, start + count)])
    return {name: batch[name] for name in opened.program.inputs}
