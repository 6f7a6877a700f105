"""Runs the passes of a job: checked after each one, cached, and resumed after a kill.

A finished step is a folder ``<out>/steps/<index>-<name>-<hash>/`` with the program's checkpoint, ``step.json`` and the
SHA-256 of both. The hash covers all that the step's numbers follow from: the input program, the pass's
configuration, the budget, the tasks, the seed, the data's identity and the code. A folder whose checksums do not fit
is computed again.

The next pass always gets the program as it is read back from the folder, whether the step ran now or last week: a
resumed job therefore gives the same network bit for bit, and a checkpoint that does not read back is found at once.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from mtlc.checksums import seal_folder
from mtlc.compress.pass_interface import Budget, Context
from mtlc.compress.passes.registry import pass_type
from mtlc.compress.pipeline.checks import EXACT_TOLERANCE, check
from mtlc.compress.pipeline.identity import Step, own_generators, step_key, tensors_hash
from mtlc.compress.pipeline.step_folder import Finished, _read, disk_errors
from mtlc.errors import MtlcError, UserError, VerificationError, one_line
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits, fetch
from mtlc.files import atomic_folder
from mtlc.log import Log, debug, silent
from mtlc.program.program import Program
from mtlc.tracking.tracked import measured, within

_CHECK_SAMPLES = 4


def run_passes(
    program: Program,
    steps: Sequence[Step],
    *,
    splits: Splits,
    criteria: Criteria,
    out: Path,
    budget: Budget | None = None,
    seed: int = 0,
    log: Log = silent,
    progress: bool = False,
    train_lr: float | None = None,
    reference: Program | None = None,
) -> list[Finished]:
    """Run every step on the result of the one before; `program` stays as it is.

    `reference` is the uncompressed network, if that is not `program`; `train_lr` is the learning rate that it was
    trained with, if the job says so.

    Raises what a pass raises, with the pass's place and the passes before it in front; `VerificationError` when a pass
    broke a promise. After a `KeyboardInterrupt` or a kill, the same call goes on from the last finished step.
    """
    reference, done = reference or program, list[Finished]()
    if steps:
        splits.identify(log)
    for index, step in enumerate(steps, 1):
        kind = pass_type(step.name)
        key = step_key(
            program, step, kind, budget=budget, seed=seed, splits=splits, reference=reference, train_lr=train_lr
        )
        label = f"{index:02d}-{step.name}-{key[:12]}"
        folder, workdir = out / "steps" / label, out / "work" / label
        debug(log, f"{step.name}: step {label}, {json.dumps(step.config.model_dump(mode='json'))}")
        with _placed(step, done), disk_errors(workdir):
            finished = _read(folder, index, step, program, log=log)
            if finished is not None:
                log(f"{step.name}: done before, read from {folder}")
            else:
                log(f"{step.name}: pass {index} of {len(steps)}")
                names = program.task_names
                known = criteria.restricted(names), reference.restricted(names)
                context = Context(splits, *known, workdir, budget, seed, log, progress, train_lr)
                with within(f"{index:02d}-{step.name}"):
                    finished = _run(program, index, step, context, folder)
        passed = {"macs": finished.cost["macs"], "parameters": finished.cost["params"], "seconds": finished.seconds}
        measured({f"passes/{name}": value for name, value in passed.items()}, index)
        shutil.rmtree(workdir, ignore_errors=True)
        done.append(finished)
        program = finished.program
    return done


def _run(program: Program, index: int, step: Step, context: Context, folder: Path) -> Finished:
    """Run one pass, check it, write its folder, and give what reads back from it."""
    one = pass_type(step.name)(step.config)
    one.requires(program, context)
    context.workdir.mkdir(parents=True, exist_ok=True)
    batch = fetch(context.splits.calibration, range(min(_CHECK_SAMPLES, len(context.splits.calibration))))
    before, fingerprint = _outputs(program, batch), tensors_hash(program)
    with own_generators(context.seed):
        started = time.monotonic()
        result = one.run(program, context)
        seconds = time.monotonic() - started
    if tensors_hash(program) != fingerprint:
        raise VerificationError("the pass altered the program that it was given; it must work on program.clone()")
    after = _outputs(result.program, batch)
    cost = check(one, program, result, before, after)
    description = {
        "name": step.name, "config": step.config.model_dump(mode="json"), "where": step.where,
        "seconds": round(seconds, 3),
        "missed": result.missed, "cost": cost, "report": result.report, "artifacts": result.artifacts,
    }  # fmt: skip
    text = json.dumps(description, indent=1)
    with atomic_folder(folder) as temporary:
        result.program.save(temporary / "program")
        (temporary / "step.json").write_text(text + "\n")
        seal_folder(temporary)
    finished = _read(folder, index, step, program, cached=False)
    if finished is None:
        raise UserError(f"{folder}: what was written does not read back; check the disk")
    for task, output in _outputs(finished.program, batch).items():
        if not torch.allclose(output, after[task], rtol=0, atol=EXACT_TOLERANCE * float(after[task].abs().max())):
            raise VerificationError(
                f"task {task!r}: the checkpoint gives another output than the pass did; its surgery does not replay"
            )
    return finished


def _outputs(program: Program, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    program.module.eval()
    with torch.inference_mode():
        return program.outputs(batch)


@contextmanager
def _placed(step: Step, done: Sequence[Finished]) -> Iterator[None]:
    """Put the pass's place in the job, and the passes that already ran, in front of whatever it raises."""
    earlier = f" (after {', '.join(finished.name for finished in done)})" if done else ""
    try:
        yield
    except MtlcError as error:
        raise type(error)(f"{step.where}{earlier}: {error}") from error
    except Exception as error:
        raise UserError(f"{step.where}{earlier}: raised {one_line(error)}") from error
