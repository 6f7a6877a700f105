"""Trains the job's network, and writes its weights where the job looks for them (``mtlc train``)."""

from __future__ import annotations

import shutil
from pathlib import Path

from mtlc.errors import UserError
from mtlc.job.job import Job
from mtlc.log import Log, silent
from mtlc.results.train import TrainingEffort, TrainResults, ValidationResult
from mtlc.workflows.job_as_run import overrides_of
from mtlc.workflows.job_device import on_the_jobs_device
from mtlc.workflows.opened_job import open_job
from mtlc.workflows.output_folder import output_folder
from mtlc.workflows.preconditions import Training, check_preconditions
from mtlc.workflows.tracked_verb import tell_train, tracked, trackers_of


@on_the_jobs_device
def train_job(
    job: Job,
    out: Path | None = None,
    *,
    start: Path | None = None,
    half: bool = False,
    log: Log = silent,
    progress: bool = False,
) -> TrainResults:
    """Train, write the weights to `out` (by default the job's ``[model] weights``), and evaluate them on validation.

    With `start`, a weights file, the network is fine-tuned from it. With `half` the file holds float16, half
    the size; the metrics are those of what is in the file.
    State is kept in ``<out>.training/`` and removed at the end: a run that was cut off goes on from it.
    Raises `UserError` if there is nowhere to write, or a task's loss is not a number.
    """
    from mtlc.compress.pipeline.step_folder import disk_errors
    from mtlc.compress.training.train_config import TrainConfig
    from mtlc.compress.training.trainer import train
    from mtlc.evaluation.evaluate import evaluate
    from mtlc.files import atomic_file
    from mtlc.program.tensors_file import load_tensors, save_tensors

    target = out or job.weights
    if target is None:
        raise UserError("[model] weights is not set: say where the weights go, there or with --out")
    if target.suffix != ".safetensors":
        raise UserError(f"{target}: weights are written as .safetensors")
    if target.is_dir():
        raise UserError(f"{target}: is a folder; name a file for the weights")
    trackers = trackers_of(job)
    opened = open_job(job, weights=False, log=log)
    if start is not None:
        load_tensors(opened.program.module, start)
    config = job.train or TrainConfig.model_validate({})
    check_preconditions(opened, [Training("[train]", config, teacher=False)], log)
    about = target.with_name(target.name + ".tracking")  # where trackers write, if there are any
    scratch = target.with_name(target.name + ".training")
    with output_folder(scratch), tracked(job, "train", about, trackers, log), disk_errors(target):
        report = train(
            opened.program, opened.splits, opened.criteria, config,
            seed=job.seed, checkpoint=scratch / "state", progress=progress, log=log,
        )  # fmt: skip
        if "more_epochs" in report:
            log(f"training: {report['more_epochs']['line']}")
        with atomic_file(target) as temporary:
            save_tensors(opened.program.module, temporary, half)
        load_tensors(opened.program.module, target)
        log("evaluating on the validation split")
        result = evaluate(opened.program, opened.criteria, opened.splits.validation)
        found = TrainResults(
            weights=str(target), training=TrainingEffort.model_validate(report), config=config.model_dump(),
            seed=job.seed, validation=ValidationResult.model_validate(vars(result)), units=opened.criteria.units,
            **overrides_of(job),
        )  # fmt: skip
        found.write(target.with_suffix(".train.json"))
        tell_train(found)
        shutil.rmtree(scratch / "state", ignore_errors=True)  # while it is locked: afterwards it may be the next run's
    return found
