"""Makes the job that ``--set`` asks for, before a verb is called with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mtlc.errors import UserError

if TYPE_CHECKING:
    from mtlc.job.job import Job


def with_overrides(job: Path | None, overrides: tuple[str, ...]) -> Path | Job | None:
    """The job at `job` with what was set over it; its path, unread, where nothing was. Raises `UserError`."""
    if not overrides:
        return job
    if job is None:
        raise UserError("--set changes a job: name it with --job")
    from mtlc.job.job import load_job

    return load_job(job, overrides)


def target_with_overrides(
    target: Path, job: Path | None, overrides: tuple[str, ...]
) -> tuple[Path | Job, Path | Job | None]:
    """A target that may be a job itself, and `job`: what was set is set over the one of them that is a job."""
    if overrides and job is None and target.suffix == ".toml":
        from mtlc.job.job import load_job

        return load_job(target, overrides), None
    return target, with_overrides(job, overrides)
