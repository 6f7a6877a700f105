"""What a verb works on: a job's network, or a checkpoint with the job that has its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from mtlc.compile.workspace import Opened, open_job
from mtlc.data import fetch
from mtlc.errors import UserError, nearest
from mtlc.evaluation import Criteria
from mtlc.job import load_job
from mtlc.program import Program


def open_target(target: Path, job: Path | None = None) -> Opened:
    """A job file; or a checkpoint folder, or the output folder of a run, with the `job` that names its data and factory.

    Raises `UserError` where `target` is none of them.
    """
    if target.suffix == ".toml" and target.is_file():
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
    """The task asked for. Raises `UserError` for one that is not there, and if none is named where there are several."""
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
