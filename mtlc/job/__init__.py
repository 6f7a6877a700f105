"""Reads the job file and loads what it names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlc.lazy import lazy_names

if TYPE_CHECKING:
    from mtlc.job.job import Job, load_job
    from mtlc.job.schema import JobFile

_HOMES = {
    "Job": ".job",
    "JobFile": ".schema",
    "load_job": ".job",
}

__all__ = [
    "Job",
    "JobFile",
    "load_job",
]

__getattr__ = lazy_names(__name__, _HOMES)
