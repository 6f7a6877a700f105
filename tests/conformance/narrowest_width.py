"""Makes a network slimmable and compares its narrowest width with the network that is cut out for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mtlc.compress.pipeline.pipeline import run_passes
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.evaluation.splits import fetch
from mtlc.job.job import load_job
from mtlc.workflows.opened_job import open_job
from mtlc.workflows.preconditions import check_preconditions, trainings

TOLERANCE = 1e-4
"""Largest difference of an output, relative to its largest value: both add the same numbers in another order."""


def narrowest_width(job_file: Path, work: Path) -> dict[str, Any]:
    """What ``mtlc slim`` does before its search and export: the table of widths, a step of training.

    Then the narrowest configuration runs twice: on slices of the widest network, and cut out. ``differs`` is how far
    apart they are, ``macs`` what the widest and the narrowest cost. Raises `UserError` as the verb does.
    """
    job = load_job(job_file)
    opened = open_job(job)
    check_preconditions(opened, trainings(job.steps))
    program = run_passes(
        opened.program, job.steps, splits=opened.splits, criteria=opened.criteria, out=work, seed=job.seed
    )[-1].program
    supernet = Supernet.of(program)
    narrow = supernet.narrow(supernet.smallest)
    batch = fetch(opened.splits.calibration, range(4))
    program.module.eval()
    with torch.no_grad():
        with supernet.at(supernet.smallest):
            sliced = {task: output.clone() for task, output in program.outputs(batch).items()}
        alone = narrow.outputs(batch)
    differs = max(
        float((sliced[task] - alone[task]).abs().max() / alone[task].abs().max().clamp(min=1e-12)) for task in alone
    )
    return {
        "macs": [supernet.macs(supernet.largest), supernet.macs(supernet.smallest)],
        "differs": differs,
        "tolerance": TOLERANCE,
    }
