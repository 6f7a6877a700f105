"""Measures a supernet's configurations on a job's data, for ``mtlc slim`` and ``mtlc search``, and keeps what was
measured.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import partial
from pathlib import Path

from mtlc.compress.pipeline.identity import evaluation_hash, program_hash
from mtlc.compress.slimmable.evaluations import Evaluations, Executor, Here, Measurer, Processes, RayCluster
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.job.job import load_job
from mtlc.log import Log, silent
from mtlc.program.program import Program
from mtlc.workflows.opened_job import Opened, open_job

EVALUATIONS = "evaluations.json"


def load_measurer(checkpoint: Path, job: Path, samples: int | None, recalibrate: int) -> Measurer:
    """A measurer of the supernet in a checkpoint, on the data of a job: what a worker process calls for itself."""
    opened = open_job(load_job(job), weights=False)
    supernet = Supernet.of(Program.load(checkpoint, opened.job.source))
    return Measurer(supernet, opened.splits, opened.criteria.restricted(supernet.tasks), samples, recalibrate)


def evaluations_of(
    supernet: Supernet,
    opened: Opened,
    checkpoint: Path,
    *,
    samples: int | None,
    recalibrate: int,
    workers: int = 1,
    ray: str | None = None,
    log: Log = silent,
) -> Evaluations:
    """Measurements on the calibration split of a job, kept beside the checkpoint.

    `workers` processes measure, or a Ray cluster: `ray` is its address, "local" one on this machine.
    """
    executor: Executor
    load = partial(load_measurer, checkpoint.resolve(), opened.job.path.resolve(), samples, recalibrate)
    if ray is not None:
        executor = RayCluster(load, None if ray == "local" else ray)
    elif workers > 1:
        executor = Processes(load, workers)
    else:
        criteria = opened.criteria.restricted(supernet.tasks)
        executor = Here(Measurer(supernet, opened.splits, criteria, samples, recalibrate))
    opened.splits.identify(log)
    tasks = supernet.program.tasks
    here = isinstance(executor, Here)  # workers compute with one thread each
    measured = evaluation_hash(tasks, opened.splits, None if here else 1)
    identity = json.dumps([program_hash(supernet.program), measured, samples, recalibrate])
    path: Path | None = checkpoint.parent / EVALUATIONS
    if not os.access(checkpoint.parent, os.W_OK):
        log(f"{checkpoint.parent} cannot be written: what is measured is not kept")
        path = None
    return Evaluations(executor, supernet.tasks, path, hashlib.sha256(identity.encode()).hexdigest(), log=log)
