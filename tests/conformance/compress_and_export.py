"""Runs a job's passes and exports the result, by the functions of ``mtlc run``, without the original's bundle.

Exporting is what takes longest, and a run exports twice. Times, pictures and the report are left out too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtlc.compress.pass_interface import Context
from mtlc.compress.pipeline.pipeline import run_passes
from mtlc.hw.cost.count import workload
from mtlc.job.job import load_job
from mtlc.log import silent
from mtlc.workflows.evaluated import evaluated
from mtlc.workflows.export_job import export_program
from mtlc.workflows.opened_job import open_job
from mtlc.workflows.output_folder import output_folder
from mtlc.workflows.preconditions import check_passes, check_preconditions, trainings
from mtlc.workflows.run_budget import read_budget


def compress_and_export(job_file: Path, out: Path) -> dict[str, Any]:
    """The network after the job's passes, as a verified bundle ``out/bundle``.

    ``macs`` and ``parameters`` are what is left, ``compared`` how far what was built is from the masked network,
    ``differs`` how far the bundle is from torch, relative to an output's largest value, ``missed`` what a pass could
    not reach. Raises what ``mtlc run`` raises.
    """
    job = load_job(job_file)
    opened = open_job(job)
    with output_folder(out):
        budget = read_budget(job, opened.program, out)
        check_passes(job.steps, Context(opened.splits, opened.criteria, opened.program, out, budget, job.seed))
        check_preconditions(opened, trainings(job.steps))
        steps = run_passes(
            opened.program, job.steps, splits=opened.splits, criteria=opened.criteria, out=out, budget=budget,
            seed=job.seed,
        )  # fmt: skip
        program = steps[-1].program if steps else opened.program
        evaluated(opened, program, "compressed", silent)
        bundle = export_program(opened, program, out / "bundle")
    compared = [found["compared"] for step in steps for found in step.report.get("rounds", ()) if "compared" in found]
    return {
        "macs": workload(program).macs,
        "parameters": program.parameters_count(),
        "missed": next((step.missed for step in steps if step.missed), None),
        "compared": max((max(one["tasks"].values()) for one in compared), default=None),
        "differs": largest_difference(bundle["verification"]),
        "tolerance": bundle["tolerance"],
        "programs": len(bundle["programs"]),
    }


def largest_difference(verification: dict[str, dict[str, Any]]) -> float:
    """The largest relative difference of any task at any batch size."""
    found = (error["max_rel"] for task in verification.values() for error in task.values() if isinstance(error, dict))
    return max(found)
