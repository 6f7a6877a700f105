"""Runs a sweep from Python: `mtlc.sweep`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtlc.errors import UserError
from mtlc.log import Log
from mtlc.results.sweep import SweepResult
from mtlc.workflows.said_by import said_by
from mtlc.workflows.sweep import sweep_job


def sweep(
    job: str | os.PathLike[str],
    grid: Mapping[str, Sequence[Any]] | Sequence[str] = (),
    *,
    out: str | os.PathLike[str],
    seeds: int = 1,
    jobs: int | None = None,
    threads: int = 1,
    ray: str | None = None,
    device: str | None = None,
    log: Log | None = None,
) -> SweepResult:
    """Run a job with every combination of values and several seeds, as ``mtlc sweep`` does.

    Args:
        job: the path of a job file: other processes and machines cannot have the objects of this one.
        grid: the values by key, ``{"passes.0.round_to": [8, 16]}``, or texts as ``--set`` takes them.
        out: the folder of the table, the page, and a folder for each run. What is there is not run again.
        seeds: how many each combination runs with, from the job's own on.
        jobs: runs at a time: here one by default, on a cluster as many as find room.
        threads: of torch in each run.
        ray: the address of a Ray cluster, ``"local"`` for one on this machine.
        device: what torch computes on, by default the job's.
        log: takes lines about the progress; by default they go to stderr.

    Returns:
        Every run, every combination over its seeds, and the best run; ``sweep.json`` holds the same. A run that failed
        is told there and stops no other.

    Raises:
        UserError: for a job, key or value that is wrong; nothing has run then.
        Unavailable: for a cluster that cannot be reached.
    """
    for name, given in (("job", job), ("out", out)):
        if not isinstance(given, str | os.PathLike):
            raise UserError(f"{name} is a {type(given).__name__}: give a path")
    return sweep_job(
        Path(job).expanduser(), grid, Path(out).expanduser(), seeds=seeds, jobs=jobs, threads=threads, ray=ray,
        device=device, log=said_by(log),
    )  # fmt: skip
