"""Records where the tokens of real inputs go in a mixture of experts, and what that costs: ``mtlc trace``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtlc.errors import UserError, nearest
from mtlc.evaluation.splits import fetch
from mtlc.hw.routing.active_macs import active
from mtlc.hw.routing.routing_trace import RoutingTrace, load, record
from mtlc.job.job import Job
from mtlc.log import Log, silent
from mtlc.results.trace import TraceResult
from mtlc.workflows.opened_job import open_job, open_target

SAMPLES = 16
"""Calibration samples that are recorded unless another number is asked for; a smaller split is recorded whole."""


def trace_job(
    job: Job,
    *,
    checkpoint: Path | None = None,
    recorded: Path | None = None,
    samples: int | None = None,
    tasks: Sequence[str] = (),
    out: Path | None = None,
    log: Log = silent,
) -> TraceResult:
    """Record the routing of the job's network, or of its `checkpoint`, on calibration samples, one at a time.

    `out` gets the trace as an ``.npz`` that `mtlc.hw.routing.routing_trace.load` reads. With a trace that was
    `recorded` before, none is recorded. Returns what `ActiveCost.to_dict` does, its ``"kind"``, and where the trace is
    from. Raises `UserError` for a network without experts, an unknown task, too few samples, and a trace of another
    network.
    """
    if recorded is not None and (samples is not None or tasks or out is not None):
        raise UserError("--trace shows a trace as it is: give no --samples, --task or --out with it")
    if out is not None and out.suffix != ".npz":
        raise UserError(f"--out {out}: a trace is an .npz file")
    given = None if recorded is None else load(recorded)
    log("reading the data and building the network")
    opened = open_job(job, log=log) if checkpoint is None else open_target(checkpoint, job)
    program = opened.program
    for task in tasks:
        if task not in program.task_names:
            raise UserError(f"--task: the network has no task {task!r}{nearest(task, program.task_names)}")
    split = opened.splits.calibration
    if samples is not None and samples > len(split):
        raise UserError(f"--samples {samples}: the calibration split has {len(split)}")
    count = min(samples or SAMPLES, len(split))
    if given is None:
        log(f"recording {count} samples")
        name = program.inputs[0]
        images = [fetch(split, [index])[name][0] for index in range(count)]
        made = record(program, images, tuple(dict.fromkeys(tasks)) or None)
        given = RoutingTrace(made.frames, f"recorded on {count} calibration samples of {job.path.name}")
    cost = active(program, given)
    if out is not None:
        given.save(out)
    return TraceResult(
        kind="measured",
        source=given.source,
        path=None if out is None else str(out),
        samples={task: len(frames) for task, frames in given.frames.items()},
        **cost.to_dict(),
    )
