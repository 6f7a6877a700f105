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
from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.evaluations import Evaluations, Executor, Here, Measurer, Processes, RayCluster
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.errors import UserError
from mtlc.evaluation.evaluate import Evaluation
from mtlc.job.job import load_job
from mtlc.job.overrides import Overrides
from mtlc.log import Log, silent
from mtlc.program.program import Program
from mtlc.workflows.opened_job import Opened, open_job

EVALUATIONS = "evaluations.json"


def load_measurer(
    checkpoint: Path, job: Path, samples: int | None, recalibrate: int, device: str = "auto", overrides: Overrides = ()
) -> Measurer:
    """A measurer of the supernet in a checkpoint, on the data of a job: what a worker process calls for itself."""
    opened = open_job(load_job(job, overrides), weights=False)
    supernet = Supernet.of(Program.load(checkpoint, opened.job.source))
    criteria = opened.criteria.restricted(supernet.tasks)
    return Measurer(supernet, opened.splits, criteria, samples, recalibrate, device=device)


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
    device = opened.job.device
    if opened.job.given is not None and (ray is not None or workers > 1):
        raise UserError(
            f"workers = {workers}: other processes cannot have the objects of this one; name the network and its data "
            "in a job, or measure here: workers = 1"
        )
    job = opened.job.path.resolve(), samples, recalibrate, device, opened.job.overrides
    load = partial(load_measurer, checkpoint.resolve(), *job)
    if ray is not None:
        executor = RayCluster(load, ray)
    elif workers > 1:
        executor = Processes(load, workers)
    else:
        criteria = opened.criteria.restricted(supernet.tasks)
        executor = Here(Measurer(supernet, opened.splits, criteria, samples, recalibrate, device=device))
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


def measured_by_sample(
    supernet: Supernet,
    opened: Opened,
    configurations: tuple[Configuration, Configuration],
    samples: int | None,
    recalibrate: int,
) -> tuple[Evaluation, Evaluation]:
    """Two configurations as `evaluations_of` measures them, in this process, with what each sample adds to the metrics.

    The first is run once if both are the same.
    """
    criteria = opened.criteria.restricted(supernet.tasks)
    measurer = Measurer(supernet, opened.splits, criteria, samples, recalibrate, device=opened.job.device)
    one, other = configurations
    first = measurer.evaluation(one, keep=True)
    return first, first if other == one else measurer.evaluation(other, keep=True)
