"""Runs a verb of a job on the device that the job names."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from mtlc.job.job import Job
from mtlc.log import debug, shown_bars, silent

P = ParamSpec("P")
R = TypeVar("R")


def on_the_jobs_device(verb: Callable[Concatenate[Job, P], R]) -> Callable[Concatenate[Job, P], R]:
    """`verb`, within which networks run on the job's ``device``; its `log` is told which, if it is not the CPU.

    What it does raises `UserError` too where the device is not there.
    """

    @wraps(verb)
    def run(job: Job, /, *args: P.args, **kwargs: P.kwargs) -> R:
        import torch

        from mtlc.program.placement import computing_on, device_name

        log = kwargs.get("log", silent)
        with computing_on(job.device) as device, shown_bars(bool(kwargs.get("progress"))):
            if callable(log):
                debug(log, f"torch {torch.__version__} computes on {device} with {torch.get_num_threads()} threads")
                debug(log, f"job {job}, seed {job.seed}" + "".join(f", {one}" for one in job.overrides))
            if callable(log) and (name := device_name(device)):
                log(f"torch computes on {device} ({name})")
            return verb(job, *args, **kwargs)

    return run
