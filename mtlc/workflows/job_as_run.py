"""Tells what was set over a job's file, and writes the job as it was run beside its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mtlc.files import atomic_file
from mtlc.job.job import Job

JOB_AS_RUN = "job-as-run.toml"
"""The job of a run in its output folder: not ``job.toml``, which may be the user's own."""


def overrides_of(job: Job) -> dict[str, Any]:
    """``{"overrides": …}`` with JSON values by key, for a result; empty where nothing was set over the file.

    What was set of ``[track]`` is not told: results name no addresses."""
    changes = {key: value for key, value in job.changes.items() if key.split(".")[0] != "track"}
    return {"overrides": json.loads(json.dumps(changes, default=str))} if changes else {}


def write_job(job: Job, out: Path) -> None:
    """Write the job as it was run to the folder `out`; a job of a Python caller, which has no file, is not written."""
    text = job.as_run()
    if text is not None:
        with atomic_file(out / JOB_AS_RUN) as temporary:
            temporary.write_text(text, encoding="utf-8")
