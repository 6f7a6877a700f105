"""Runs single passes on a `Program` from Python, for those who write their own loop: `mtlc.prune` and its like.

Each goes through the same pipeline as a job's passes: checked before and after, and kept in ``out`` if there is one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtlc.compress.pass_interface import Context, Pass
from mtlc.compress.passes.registry import pass_type
from mtlc.compress.pipeline.pipeline import run_passes
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.job.python_job import is_whole, python_job
from mtlc.log import Log
from mtlc.program.program import Program
from mtlc.workflows.one_at_a_time import one_at_a_time
from mtlc.workflows.opened_job import Opened
from mtlc.workflows.output_folder import output_folder
from mtlc.workflows.preconditions import check_passes, check_preconditions, trainings
from mtlc.workflows.run_budget import read_budget
from mtlc.workflows.said_by import said_by


@one_at_a_time
def run_pass(
    program: Program,
    one: Pass[Any] | str,
    data: Any,
    *,
    budget: str | Mapping[str, Any] | None = None,
    reference: Program | None = None,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    train_lr: float | None = None,
    log: Log | None = None,
    progress: bool = False,
) -> Program:
    """Run one pass on `program`, which stays as it is, and give the program that it makes.

    Args:
        program: of `mtlc.from_model`, `mtlc.load`, or an earlier pass.
        one: the pass, such as ``mtlc.Prune(round_to=16)``.
        data: all splits: `mtlc.Splits`, or a dict or a tuple of train, (calibration,) validation, each of any kind that
            `mtlc.compress` takes.
        budget: as that of `mtlc.compress`; shares are of `reference`.
        reference: the network that limits and distillation refer to. By default the original of a program that passes
            have changed, with the weights that `mtlc.from_model` was given; else `program`.
        out: a folder in which the finished pass is kept, so that the same call need not run it again.
        seed, train_lr, log, progress: as those of `mtlc.compress`.

    Raises `UserError` for bad input and `VerificationError` where the pass broke a promise.
    """
    if not isinstance(program, Program):
        raise UserError(f"program is a {type(program).__name__}: give that of mtlc.from_model(model, tasks, data)")
    if not is_whole(data):
        raise UserError(
            f"data is a {type(data).__name__}: give all splits, such as (train, validation) or "
            "mtlc.Splits(train, calibration, validation)"
        )
    said = said_by(log)
    job = python_job(
        program.source, {task.name: task for task in (*program.tasks, *program.auxiliary)}, data,
        verb="mtlc.run_pass", budget=budget, passes=[one], inputs=program.inputs,
        preprocessing=program.preprocessing, ignore_outputs=program.ignored_outputs, seed=seed, train_lr=train_lr,
        log=said,
    )  # fmt: skip
    original = _original(program) if reference is None else reference
    splits, criteria = job.load_splits(), Criteria(job.tasks)
    with tempfile.TemporaryDirectory() as scratch, output_folder(Path(scratch if out is None else out)) as folder:
        asked = read_budget(job, original, folder, said)
        check_passes(job.steps, Context(splits, criteria, program, folder, asked, seed))
        check_preconditions(Opened(job, splits, program, criteria), trainings(job.steps), said)
        done = run_passes(
            program, job.steps, splits=splits, criteria=criteria, out=folder, budget=asked, seed=seed, log=said,
            progress=progress, train_lr=train_lr, reference=original,
        )[-1]  # fmt: skip
    if done.missed:
        said(f"missed: {done.missed}")
    return done.program


def prune(program: Program, data: Any, *, budget: str | Mapping[str, Any], **settings: Any) -> Program:
    """Remove channels to a budget, every task within its limit: the pass ``prune``.

    `settings` are those of the pass (``round_to=16``, ``finetune={"epochs": 5}``) and the keyword arguments of
    `run_pass`. Raises what `run_pass` does.
    """
    return _run("prune", program, data, {**settings, "budget": budget})


def finetune(program: Program, data: Any, **settings: Any) -> Program:
    """Train the network a little more, distilling from the original: the pass ``finetune``.

    `settings` are those of the pass (``epochs=5``, ``lr=1e-3``) and the keyword arguments of `run_pass`.
    """
    return _run("finetune", program, data, settings)


def extract(program: Program, data: Any, **settings: Any) -> Program:
    """Keep the experts, gates and heads of some tasks of a mixture of experts: the pass ``extract``.

    `settings` are those of the pass (``tasks=["depth"]``) and the keyword arguments of `run_pass`.
    """
    return _run("extract", program, data, settings)


def calibrate(program: Program, data: Any, **settings: Any) -> Program:
    """Take the statistics of batch norms anew from training samples: the pass ``calibrate``.

    `settings` are those of the pass and the keyword arguments of `run_pass`.
    """
    return _run("calibrate", program, data, settings)


_OF_RUN = ("budget", "reference", "out", "seed", "train_lr", "log", "progress")


def _run(name: str, program: Program, data: Any, given: Mapping[str, Any]) -> Program:
    settings = {key: value for key, value in given.items() if key not in _OF_RUN}
    asked = {key: value for key, value in given.items() if key in _OF_RUN}
    return run_pass(program, pass_type(name)(**settings), data, **asked)


def _original(program: Program) -> Program:
    if not program.history:
        return program
    return replace(program, module=program.source.build().eval(), history=())
