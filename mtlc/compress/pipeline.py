"""Running the passes of a job: checked after each one, cached, and resumed after a kill.

A finished step is a folder ``<out>/steps/<index>-<name>-<hash>/`` with the program's checkpoint, ``step.json`` and the
SHA-256 of both. The hash covers all that the step's numbers follow from: the input program, the pass's
configuration, the budget, the tasks, the seed, the data's identity and the code. A folder whose checksums do not fit is computed again.

The next pass always gets the program as it is read back from the folder, whether the step ran now or last week: a
resumed job therefore gives the same network bit for bit, and a checkpoint that does not read back is found at once.
"""

from __future__ import annotations

import errno
import hashlib
import json
import platform
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

import mtlc
from mtlc.compress.passes import Budget, Context, Pass, PassConfig, PassResult, pass_type
from mtlc.data import Splits, fetch
from mtlc.errors import MtlcError, UserError, VerificationError
from mtlc.evaluation import Criteria
from mtlc.factory import one_line
from mtlc.files import atomic_folder, user_errors
from mtlc.hw.workload import macs, parameters
from mtlc.program import Program

EXACT_TOLERANCE = 1e-5
"""How far an exact pass may move an output, relative to the largest value of that output (float32 rounding)."""

_CHECK_SAMPLES = 4
# What no step's numbers follow from: changing it does not make anyone prune and train again.
_NOT_NUMBERS = {
    *("cli.py", "cli_bundle.py", "cli_fpga.py", "front.py", "compile", "export", "runtime", "job.py", "job_file.py"),
    *("toml.py", "validation.py", "files.py", "errors.py", "onnx_names.py"),
}
# Of the package that costs and reports, and of export, what passes ask.
_HW_NUMBERS = {
    f"hw/{name}.py"
    for name in ("__init__", "workload", "trace", "aten", "liveness", "active", "measure", "fpga/routing")
}
_EXPORT_NUMBERS = {"export/quantization/targets.py"}
_PACKAGES = ("torch", "torch-pruning", "numpy", "scipy", "nncf", "safetensors")


@dataclass(frozen=True)
class Step:
    """One pass of a job with its checked configuration; `where` says where it stands in the job file."""

    name: str
    config: PassConfig
    where: str


@dataclass(frozen=True)
class Finished:
    """A finished step. `cached` says that it was read from an earlier run; `seconds` is what it took when it ran."""

    index: int
    name: str
    folder: Path
    program: Program
    report: dict[str, Any]
    artifacts: dict[str, Any]
    cost: dict[str, int]
    missed: str | None
    seconds: float
    cached: bool


def run_passes(
    program: Program,
    steps: Sequence[Step],
    *,
    splits: Splits,
    criteria: Criteria,
    out: Path,
    budget: Budget | None = None,
    seed: int = 0,
    log: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> list[Finished]:
    """Run every step on the result of the one before; `program` is the uncompressed one, and stays as it is.

    Raises what a pass raises, with the pass's place and the passes before it in front; `VerificationError` when a pass
    broke a promise. After a `KeyboardInterrupt` or a kill, the same call goes on from the last finished step.
    """
    reference, done = program, list[Finished]()
    for index, step in enumerate(steps, 1):
        key = step_key(program, step, budget=budget, seed=seed, splits=splits, reference=reference)
        label = f"{index:02d}-{step.name}-{key[:12]}"
        folder, workdir = out / "steps" / label, out / "work" / label
        with _placed(step, done), disk_errors(workdir):
            finished = _read(folder, index, step, program)
            if finished is not None:
                log(f"{step.name}: done before, read from {folder}")
            else:
                log(f"{step.name}: pass {index} of {len(steps)}")
                names = program.task_names
                known = criteria.restricted(names), reference.restricted(names)
                context = Context(splits, *known, workdir, budget, seed, log, progress)
                finished = _run(program, index, step, context, folder)
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
    seed_everything(context.seed)
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
        (temporary / "sha256.json").write_text(json.dumps(_checksums(temporary), indent=1) + "\n")
    finished = _read(folder, index, step, program, cached=False)
    if finished is None:
        raise UserError(f"{folder}: what was written does not read back; check the disk")
    for task, output in _outputs(finished.program, batch).items():
        if not torch.allclose(output, after[task], rtol=0, atol=EXACT_TOLERANCE * float(after[task].abs().max())):
            raise VerificationError(
                f"task {task!r}: the checkpoint gives another output than the pass did; its surgery does not replay"
            )
    return finished


def check(
    one: Pass, program: Program, result: PassResult, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> dict[str, int]:
    """What must hold after any pass; returns the measured cost in MACs (batch 1) and parameters.

    Every task's output keeps its shape and dtype (a pass that does not keep all tasks answers for those that it kept),
    nothing is NaN or infinite, an exact pass keeps the numbers to `EXACT_TOLERANCE`, and what the pass claims to cost is
    what is measured. Raises `VerificationError`.
    """
    for name, tensor in result.program.module.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise VerificationError(
                f"layer {name.rpartition('.')[0]!r}: its {name.rpartition('.')[2]} has NaN or infinite values"
            )
    if not after or not before.keys() >= after.keys():
        raise VerificationError(
            f"the pass was given the tasks {', '.join(before)} and left {', '.join(after) or 'none'}"
        )
    for task, old in before.items():
        if task not in after and not one.keeps_tasks:
            continue
        if task not in after:
            raise VerificationError(f"task {task!r}: its output is gone")
        new = after[task]
        if (new.shape, new.dtype) != (old.shape, old.dtype):
            raise VerificationError(
                f"task {task!r}: its output was {tuple(old.shape)} {old.dtype}, now {tuple(new.shape)} {new.dtype}"
            )
        if not new.is_floating_point():
            continue
        if not bool(new.isfinite().all()):
            raise VerificationError(f"task {task!r}: its output has NaN or infinite values")
        if one.exact:
            error, allowed = float((new - old).abs().max()), EXACT_TOLERANCE * max(float(old.abs().max()), 1e-12)
            if error > allowed:
                raise VerificationError(
                    f"task {task!r}: an exact pass moved its output by {error:.3g} (allowed {allowed:.3g})"
                )
    one.ensures(program, result)
    cost = {"macs": int(macs(result.program)), "params": int(parameters(result.program))}
    for kind, claimed in result.cost_claimed.items():
        if kind in cost and claimed != cost[kind]:
            raise VerificationError(f"the pass claims {claimed:,.0f} {kind}, measured are {cost[kind]:,}")
    return cost


def step_key(
    program: Program,
    step: Step,
    *,
    budget: Budget | None,
    seed: int,
    splits: Splits,
    reference: Program,
) -> str:
    """SHA-256 over everything that the numbers of a step follow from."""
    described = {
        "program": program_hash(program),
        "reference": program_hash(reference),
        "pass": [step.name, step.config.model_dump(mode="json"), source_hash(pass_type(step.name))],
        "budget": asdict(budget) if budget else None,
        "tasks": [task.to_dict() for task in program.tasks],
        "seed": seed,
        "data": splits.identity,
        "code": code_version(),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


def program_hash(program: Program) -> str:
    """The content of a program: its tensors, structure and forward code, not the times in its history."""
    described = {
        "tensors": tensors_hash(program),
        "factory": [program.source.factory, program.source.kwargs],
        "history": [[entry.name, entry.config, entry.surgery] for entry in program.history],
        "example": {name: [list(value.shape), str(value.dtype)] for name, value in program.example.items()},
        "ignored": program.ignored_outputs,
        "code": sorted({source_hash(type(module)) for module in program.module.modules()}),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


def tensors_hash(program: Program) -> str:
    """SHA-256 over the names, shapes, types and bytes of the network's state."""
    digest = hashlib.sha256()
    for name, tensor in program.module.state_dict().items():
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def source_hash(cls: type) -> str:
    """SHA-256 of the file that defines a class; torch's own files are covered by its version."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    if file is None or cls.__module__.split(".")[0] == "torch":
        return ""
    return _file_hash(Path(file))


@cache
def code_version() -> str:
    """SHA-256 of mtlc's own code that numbers can depend on, and the versions of what it computes with."""
    root, digest = Path(mtlc.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _counts(relative):
            digest.update(f"{relative}:{_file_hash(path)};".encode())
    for package in _PACKAGES:
        try:
            digest.update(f"{package}={version(package)};".encode())
        except PackageNotFoundError:
            continue
    digest.update(f"{platform.machine()}:{torch.cuda.is_available()}".encode())
    return digest.hexdigest()


def _counts(file: Path) -> bool:
    """Whether numbers of a step can follow from this file of the package."""
    if file.as_posix() in _EXPORT_NUMBERS:
        return True
    if file.parts[0] == "hw":
        return file.as_posix() in _HW_NUMBERS or file.parts[1] == "latency"
    return file.parts[0] not in _NOT_NUMBERS


@cache
def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def seed_everything(seed: int) -> None:
    """Seed every generator that a pass may draw from without saying so."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _outputs(program: Program, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    program.module.eval()
    with torch.inference_mode():
        return program.outputs(batch)


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "sha256.json")
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _read(folder: Path, index: int, step: Step, before: Program, cached: bool = True) -> Finished | None:
    """The finished step in `folder`, or None where there is none or its files are not what was written."""
    try:
        if json.loads((folder / "sha256.json").read_text()) != _checksums(folder):
            return None
        described = json.loads((folder / "step.json").read_text())
    except (OSError, ValueError):
        return None
    seed_everything(0)  # a factory that draws its structure and not only its weights must draw it as before
    program = Program.load(folder / "program", before.source)
    return Finished(
        index, step.name, folder, program, described["report"], described["artifacts"], described["cost"],
        described["missed"], described["seconds"], cached,
    )  # fmt: skip


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


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn a refusal to write into one line; safetensors wraps the operating system's error in its own."""
    with user_errors(target):
        try:
            yield
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error
