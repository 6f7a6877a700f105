"""Verifies a bundle against the network that it was made from, task by task, with numbers.

Names are never trusted: an exporter can swap two outputs of one shape without a word. Every task is compared alone and
together with the others, at several batch sizes, on real inputs. Where the comparison could not have failed (two tasks
with equal outputs, an output that does not depend on the input) the report says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlc.errors import MtlcError, UserError, VerificationError
from mtlc.export.bundle.near_ties import NEAR_TIE, routing_margins
from mtlc.export.graph.lower import inference_copy
from mtlc.log import tracked
from mtlc.program.program import Program
from mtlc.runtime.session import Session

Arrays = dict[str, np.ndarray]
WINDOWS = 3  # inputs tried per batch size


def verify_bundle(
    path: Path,
    program: Program,
    samples: Mapping[str, Tensor],
    batch_sizes: Sequence[int] = (1, 3),
    tolerance: float = 1e-4,
    backend: str = "auto",
) -> dict[str, dict[str, Any]]:
    """Compare every task of the bundle at `path` with the program on `samples` (real inputs, by name, batched).

    Returns ``{task: {batch: {"max_abs": …, "max_rel": …}, "near_ties": n, "vacuous": reason or None}}`` with batch
    sizes as text; ``max_rel`` is the largest difference divided by the largest absolute value of the program's output.
    Raises `VerificationError` if it is over `tolerance` anywhere, or if a shape or a dtype differs.

    Where a token of a sample is nearly tied between experts (`mtlc.export.bundle.near_ties`), rounding may route it
    otherwise: a sample over the tolerance is then left out and counted in ``near_ties``, as long as fewer than half of
    all are.
    """
    with Session(path, backend=backend) as session:
        return verify_session(session, path, program, samples, batch_sizes, tolerance)


def runs_onnx(backend: str) -> bool:
    """Whether the backend named in a job computes the ONNX files of a bundle, other than onnxruntime does.

    TensorRT runs engines, which are compared when they are built.
    """
    return backend not in ("auto", "onnxruntime", "tensorrt")


def verify_in_backends(
    path: Path, program: Program, samples: Mapping[str, Tensor], batch_sizes: Sequence[int], tolerance: float,
    backend: str,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """`verify_bundle` in onnxruntime, whose numbers it returns, and in `backend` where that computes ONNX files."""
    checked = verify_bundle(path, program, samples, batch_sizes, tolerance)
    if runs_onnx(backend):
        with in_backend(backend):
            verify_bundle(path, program, samples, batch_sizes, tolerance, backend)
    return checked


@contextmanager
def in_backend(backend: str) -> Iterator[None]:
    """Say in an error of verification which backend it is about."""
    try:
        yield
    except VerificationError as error:
        raise VerificationError(f"in backend {backend!r}, which [export] names: {error}") from error


def verify_session(
    session: Session,
    path: Path,
    program: Program,
    samples: Mapping[str, Tensor],
    batch_sizes: Sequence[int] = (1, 3),
    tolerance: float = 1e-4,
    tasks: Sequence[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """`verify_bundle` in the configuration that the session of the bundle at `path` has, for `tasks` (None: all)."""
    count = check_samples(samples, program, max(batch_sizes))
    program = inference_copy(program)
    tasks = program.task_names if tasks is None else tuple(tasks)
    worst: dict[str, dict[str, Any]] = {task: {} for task in tasks}
    references: list[Arrays] = []
    seen, near_ties = set[int](), {task: set[int]() for task in tasks}
    if set(session.tasks) != set(program.task_names):
        raise VerificationError(
            f"{path}: its tasks are {', '.join(session.tasks)}, the program's {', '.join(program.task_names)}"
        )
    for size in batch_sizes:
        for start in tracked(range(0, count - size + 1, size)[:WINDOWS], f"verifying batches of {size}"):
            batch = {name: samples[name][start : start + size].cpu().contiguous() for name in program.inputs}
            reference = _reference(program, batch)
            references.append(reference)
            seen |= set(range(start, start + size))
            arrays = {name: tensor.numpy() for name, tensor in batch.items()}
            results = [_run(session, arrays, tasks, size), *(_run(session, arrays, (task,), size) for task in tasks)]
            for result in results:
                for task, array in result.items():
                    tied = _near_ties(program, batch, task, array, reference[task], tolerance)
                    near_ties[task] |= {start + place for place in tied}
                    settled = reference
                    if tied:
                        array = np.delete(array, tied, 0)
                        settled = {name: np.delete(expected, tied, 0) for name, expected in reference.items()}
                    error = _compare(task, size, array, settled, tolerance)
                    before = worst[task].setdefault(str(size), error)
                    worst[task][str(size)] = {key: max(before[key], error[key]) for key in error}
    reasons = _vacuous(references, tolerance)
    for task in tasks:
        worst[task]["near_ties"] = len(near_ties[task])
        worst[task]["vacuous"] = reasons.get(task)
        if 2 * len(near_ties[task]) >= len(seen) and near_ties[task]:
            raise VerificationError(
                f"task {task!r}: {len(near_ties[task])} of {len(seen)} samples differ and have tokens whose experts "
                "are "
                f"nearly tied (scores within {NEAR_TIE:g} of each other): too many to tell rounding from a fault; "
                "is the router trained?"
            )
    return worst


def _near_ties(
    program: Program, batch: Mapping[str, Tensor], task: str, array: np.ndarray, expected: np.ndarray, tolerance: float
) -> list[int]:
    """The samples over the tolerance in which rounding alone may have changed the routing."""
    if array.shape != expected.shape or array.ndim == 0 or _error(array, expected)["max_rel"] <= tolerance:
        return []
    margins = routing_margins(program, batch, task)
    if len(margins) != len(array):
        return []
    allowed = tolerance * float(np.abs(expected).max())
    over = np.abs(array.astype(np.float64) - expected.astype(np.float64)).reshape(len(array), -1).max(1) > allowed
    return [int(place) for place in np.flatnonzero(over & (margins.numpy() < NEAR_TIE))]


def check_samples(samples: Mapping[str, Tensor], program: Program, largest: int) -> int:
    """How many samples there are. Raises `UserError` unless every input has as many, and a batch of `largest`."""
    for name in program.inputs:
        if name not in samples:
            raise UserError(f"verification: the samples have no input {name!r}")
    counts = {len(samples[name]) for name in program.inputs}
    if len(counts) != 1 or min(counts) < largest:
        raise UserError(f"verification: give {largest} samples or more of every input, not {sorted(counts)}")
    return counts.pop()


def _reference(program: Program, batch: Mapping[str, Tensor]) -> Arrays:
    with torch.inference_mode():
        outputs = {task: tensor.numpy() for task, tensor in program.outputs(batch).items()}
    for task, array in outputs.items():
        if not np.isfinite(array).all():
            raise VerificationError(
                f"task {task!r}: the network's own output is not finite on the samples; nothing to compare with"
            )
    return outputs


def _run(session: Session, arrays: Arrays, tasks: tuple[str, ...], size: int) -> Arrays:
    try:
        return session.run(arrays, tasks)
    except MtlcError as error:
        who = f"task {tasks[0]!r}" if len(tasks) == 1 else f"tasks {', '.join(tasks)}"
        raise VerificationError(f"{who}, batch {size}: the bundle does not run: {error}") from error


def _compare(task: str, size: int, array: np.ndarray, reference: Arrays, tolerance: float) -> dict[str, float]:
    where, expected = f"task {task!r}, batch {size}", reference[task]
    if array.shape != expected.shape or array.dtype != expected.dtype:
        other = f"{array.dtype} {array.shape}, the network {expected.dtype} {expected.shape}"
        raise VerificationError(f"{where}: the bundle gives {other}{_twin(task, array, reference, tolerance)}")
    error = _error(array, expected)
    if not error["max_rel"] <= tolerance:
        raise VerificationError(
            f"{where}: the bundle differs from the network by {error['max_rel']:.1e} of the output's largest value "
            f"(allowed {tolerance:.1e}){_twin(task, array, reference, tolerance)}"
        )
    return error


def _error(array: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    if array.size == 0:
        return {"max_abs": 0.0, "max_rel": 0.0}
    difference = float(np.abs(array.astype(np.float64) - expected.astype(np.float64)).max())
    scale = float(np.abs(expected.astype(np.float64)).max())
    relative = 0.0 if difference == 0 else difference / scale if scale > 0 else float("inf")
    return {"max_abs": difference, "max_rel": relative}


def _twin(task: str, array: np.ndarray, reference: Arrays, tolerance: float) -> str:
    """A hint for the error of swapped outputs: which other task the numbers belong to."""
    for other, expected in reference.items():
        if other != task and _same(array, expected, tolerance):
            return f"; it is the output of task {other!r}"
    return ""


def _same(one: np.ndarray, two: np.ndarray, tolerance: float) -> bool:
    return one.shape == two.shape and one.dtype == two.dtype and _error(one, two)["max_rel"] <= tolerance


def _vacuous(references: Sequence[Arrays], tolerance: float) -> dict[str, str]:
    """The tasks whose comparison could not have failed, with the reason."""
    reasons: dict[str, str] = {}
    for one, two in combinations(references[0], 2):
        if all(_same(reference[one], reference[two], tolerance) for reference in references):
            reasons[one] = f"its output equals that of task {two!r}: swapping them would not be seen"
            reasons[two] = f"its output equals that of task {one!r}: swapping them would not be seen"
    for task in references[0]:
        rows = [np.asarray(row, np.float64) for reference in references for row in reference[task]]
        if all(_same(row, rows[0], tolerance) for row in rows):
            reasons[task] = (
                "its output is the same for all samples: the check sees nothing of how it depends on the input"
            )
        if rows[0].size > 1 and all(np.ptp(row) <= tolerance * np.abs(row).max() for row in rows):
            reasons.setdefault(task, "its output is constant within each sample")
    return reasons
