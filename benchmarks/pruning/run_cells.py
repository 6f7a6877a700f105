"""Runs cells of the comparison one after the other, in several processes, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.pruning.pruning_cells import Cell, run_cell
from benchmarks.pruning.pruning_subjects import Subject
from mtlc.errors import MtlcError, UserError, one_line
from mtlc.extras import missing_extra

Outcome = tuple[Cell, dict[str, Any] | str]
"""A cell with its result, or with the line that says why it has none."""


def here(cells: Sequence[Cell], subject: Subject, work: Path, save: Path | None = None) -> Iterator[Outcome]:
    """One after the other, in this process."""
    for cell in cells:
        yield cell, _outcome(cell, subject, work, save)


def in_processes(
    cells: Sequence[Cell], subject: Subject, work: Path, jobs: int, save: Path | None = None
) -> Iterator[Outcome]:
    """`jobs` at a time, each in a process of its own with one thread. Raises `UserError` where a process died."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        running = {pool.submit(_outcome, cell, subject, work, save): cell for cell in cells}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a process died, perhaps for want of memory; what is finished is kept: run again, with fewer --jobs"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def ray_cluster() -> Iterator[None]:
    """The Ray cluster that is running, or one on this machine for as long as the block runs. Needs ``mtlc[ray]``."""
    try:
        import ray
    except ImportError as error:
        raise missing_extra("ray") from error
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        yield
    finally:
        if started:
            ray.shutdown()


def on_ray(cells: Sequence[Cell], subject: Subject, work: Path, save: Path | None = None) -> Iterator[Outcome]:
    """On the cluster of `ray_cluster`, as many at a time as it has cores.

    Every machine of it must have the repository and the folders `work` and `save` at the same paths.
    """
    import ray

    run = ray.remote(num_cpus=1, max_retries=2)(_alone)
    waiting = {run.remote(cell, subject, work, save): cell for cell in cells}
    while waiting:
        done, _ = ray.wait(list(waiting), num_returns=1)
        cell = waiting.pop(done[0])
        try:
            yield cell, ray.get(done[0])
        except ray.exceptions.RayError as error:
            yield cell, f"Ray gave it up: {one_line(error)}"


def _outcome(cell: Cell, subject: Subject, work: Path, save: Path | None) -> dict[str, Any] | str:
    """The result; what the cell itself refuses is told, and the others go on."""
    try:
        return run_cell(cell, subject, work, save)
    except MtlcError as error:
        return str(error)


def _alone(cell: Cell, subject: Subject, work: Path, save: Path | None) -> dict[str, Any] | str:
    _one_thread()
    return _outcome(cell, subject, work, save)


def _one_thread() -> None:
    torch.set_num_threads(1)
