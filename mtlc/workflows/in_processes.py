"""Runs a verb in the first of the processes that a launcher started, while the others take part in its trainings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mtlc.job.job import Job, load_job
from mtlc.job.overrides import Overrides
from mtlc.log import hidden_bars

T = TypeVar("T")


def in_processes(path: Path, device: str | None, overrides: Overrides, verb: Callable[[Job], T]) -> T:
    """What `verb` makes of the job at `path`, called in the first process alone: it alone logs, decides and writes.

    `device` is what torch computes on, by default the job's; `overrides` are set over the job.

    In the other processes this ends with `SystemExit`, when the first one is done: they open the job's data and train
    along. The one that fails first raises what went wrong; the others end with its exit code, or 1 where they cannot
    learn it, and say nothing. Without a launcher `verb` is called, and nothing else happens.
    """
    from mtlc.compress.training.process_group import join, launched, leave
    from mtlc.compress.training.shared_training import all_done, help_until_done
    from mtlc.program.placement import computing_on

    if launched() is None:
        return verb(load_job(path, overrides).on(device))
    group = join()
    assert group is not None
    try:
        if group.leads:
            job = load_job(path, overrides).on(device)
        group.said()  # so that of what is wrong with the job itself the first process alone speaks
        if not group.leads:
            job = load_job(path, overrides).on(device)
            with computing_on(group.own_device(job.device)), hidden_bars():
                help_until_done(group, job.load_splits())
            leave()
            raise SystemExit(0)
        found = verb(job.on(group.own_device(job.device)))
        all_done(group)
        leave()
    except SystemExit:
        raise
    except BaseException as error:
        group.ended(error)
    return found
