"""Compares two bundles, backends or precisions on the same samples: ``mtlc verify BUNDLE [OTHER] --against-backend``.

Without a job the base install is enough, and inputs are random. With one they are samples of a split, and both sides
are also measured in each task's own metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlc.errors import UserError, nearest
from mtlc.hw.measure.in_turns import backend_version
from mtlc.results.tasks import chance_warning, confidence_doubt
from mtlc.results.verify import ComparedTask, PairResult
from mtlc.runtime import Manifest, Session, open_bundle
from mtlc.runtime.random_inputs import random_inputs
from mtlc.runtime.widths.configurations import check_configuration
from mtlc.workflows.output_differences import Differences

if TYPE_CHECKING:
    from mtlc.job.job import Job
    from mtlc.workflows.measured_pair import MeasuredPair

Arrays = dict[str, np.ndarray]
Data = Callable[[], Iterator[tuple[Any, Arrays]]]
"""Batches from the beginning: what the split has (None: random inputs), and the bundles' inputs."""
BATCH = 8
RANDOM = 32
"""Random samples without a job, if nothing is said."""
TOLERANCE = 1e-4
"""What two runs in float32 may differ by where nothing is said: rounding, relative to an output's largest value."""


@dataclass(frozen=True)
class ComparedRun:
    """A bundle in a backend and a configuration: one side of the comparison."""

    path: Path
    backend: str
    version: str | None
    manifest: Manifest
    configuration: str | None

    @classmethod
    def open(cls, path: Path, backend: str, configuration: str | None, *, reference: bool = False) -> ComparedRun:
        """The bundle at `path`. A `reference` of one width runs at it, whatever the other side's configuration is."""
        with open_bundle(path) as opened:
            if reference and opened.manifest.widths is None:
                configuration = None
            if configuration is not None:
                check_configuration(path, opened.manifest, configuration)
            return cls(path, *backend_version(backend), opened.manifest, configuration)

    @contextmanager
    def session(self) -> Iterator[Session]:
        with Session(self.path, self.backend, threads=1) as session:
            if self.configuration is not None:
                session.configure(self.configuration)
            yield session

    @property
    def precision(self) -> str:
        return self.manifest.precision(self.backend)

    def __str__(self) -> str:
        named = "" if self.configuration is None else f" as {self.configuration}"
        return f"{self.path}{named} in {self.backend}"

    def as_json(self) -> dict[str, Any]:
        return {
            "bundle": str(self.path), "configuration": self.configuration, "backend": self.backend,
            "version": self.version, "precision": self.precision,
        }  # fmt: skip


def verify_pair(
    bundle: Path,
    other: Path | None = None,
    *,
    backend: str | None = None,
    against_backend: str | None = None,
    configuration: str | None = None,
    job: Path | Job | None = None,
    split: str | None = None,
    samples: int | None = None,
    tolerance: float | None = None,
) -> PairResult:
    """Run `bundle` in `backend` and, as the reference, `other` (None: `bundle`) in `against_backend`, and compare the
    tasks that both have.

    `backend` is onnxruntime if not given; `against_backend` is `backend` if there is an `other`, else onnxruntime.
    Samples are the first `samples` (None: all) of the job's `split` (None: calibration). `configuration` is what
    `bundle` runs in, and the reference too if it has several widths.

    By task: what `Differences.summary` says, ``near_ties``, and with a job ``metric``, ``unit``, ``higher_is_better``,
    ``value`` and ``reference`` (the metrics of both), ``difference``, ``limit`` (the job's ``max_drop``, from the
    reference's metric), ``within``, and what `change_chances` finds by draws of the samples from the job's seed:
    ``change_interval`` of the difference, ``kept_in`` and ``by_chance``. `tolerance` is what ``max_rel`` may be;
    `TOLERANCE` if not given and both sides are in float32. ``failed`` has a line for each task over it, and for outputs
    that do not compare; ``missed``, where no tolerance applies, one for each limit that is not kept; ``by_chance``, one
    for each that is kept by chance.

    Where routing may differ by rounding alone (`BundleMargins`), a sample over the tolerance is left out and counted in
    ``near_ties``, as long as fewer than half of all are.

    Raises `UserError` for sides that do not compare, `Unavailable` for a backend that is not here.
    """
    if job is None and split is not None:
        raise UserError("--split needs --job: the job names the data")
    first = ComparedRun.open(bundle, backend or "auto", configuration)
    trusted = against_backend or (backend if other is not None else None) or "auto"
    reference = ComparedRun.open(other or bundle, trusted, configuration, reference=True)
    tasks = _check(first, reference)
    notes = []
    left_out = [name for name in {**first.manifest.tasks, **reference.manifest.tasks} if name not in tasks]
    if left_out:
        notes.append(f"not in both, and not compared: {', '.join(left_out)}")
    measures: MeasuredPair | None = None
    if job is None:
        notes.append("inputs are random, without --job: outputs are compared, and no metric is measured")
        data, count = _random(first.manifest, samples or RANDOM)
    else:
        data, count, measures = _from_job(job, split or "calibration", samples, first.manifest, tasks)
    if tolerance is None and first.precision == reference.precision == "fp32":
        tolerance = TOLERANCE
    differences = _run(first, reference, tasks, data, measures)
    measured = {} if measures is None else measures.found()
    found: dict[str, ComparedTask] = {}
    failed, missed = [], []
    for task in tasks:
        tied = [] if tolerance is None else _near_ties(reference, task, differences[task].over(tolerance), data)
        row = {**differences[task].summary(tied), "near_ties": len(tied)}
        failed += _over(task, row, tolerance, count, len(differences[task].over(tolerance or np.inf)))
        found[task] = ComparedTask.model_validate(row | measured.get(task, {}))
        if measures is not None and tolerance is None and found[task].within is False:
            missed.append(_missed(task, found[task], measures.keeps(task)))
    return PairResult.model_validate(
        {
            "kind": "measured",
            "bundle": str(bundle),
            "first": first.as_json(),
            "reference": reference.as_json(),
            "inputs": "random" if job is None else f"{split or 'calibration'} split of {job}",
            "samples": count,
            "tolerance": tolerance,
            "tasks": found,
            "failed": failed,
            "missed": missed,
            "by_chance": _by_chance(found, split or "calibration"),
            "notes": notes,
        }
    )


def _check(first: ComparedRun, reference: ComparedRun) -> list[str]:
    """The tasks that both have. Raises `UserError` if there are none or the two are one."""
    if (first.path.resolve(), first.backend) == (reference.path.resolve(), reference.backend):
        raise UserError(
            f"{first} would be compared with itself: name another bundle, or another --backend or --against-backend"
        )
    if first.manifest.inputs != reference.manifest.inputs:
        raise UserError(f"{first.path}: takes other inputs than {reference.path}: outputs do not compare")
    tasks = [task for task in first.manifest.tasks if task in reference.manifest.tasks]
    if not tasks:
        raise UserError(f"{first.path} and {reference.path} have no task in common")
    return tasks


def _random(manifest: Manifest, count: int) -> tuple[Data, int]:
    arrays = random_inputs(manifest, count)

    def data() -> Iterator[tuple[Any, Arrays]]:
        for start in range(0, count, BATCH):
            yield None, {name: array[start : start + BATCH] for name, array in arrays.items()}

    return data, count


def _from_job(
    given: Path | Job, split: str, samples: int | None, manifest: Manifest, tasks: Sequence[str]
) -> tuple[Data, int, MeasuredPair]:
    """The batches of a split of a job, how many samples they are, and what measures `tasks` on them."""
    from mtlc.evaluation.criteria import Criteria
    from mtlc.export.quantization.calibration import checked_batches
    from mtlc.job.job import load_job
    from mtlc.workflows.measured_pair import MeasuredPair

    job = load_job(given)
    known = [task.name for task in job.tasks]
    for task in tasks:
        if task not in known:
            raise UserError(f"the bundle's task {task!r} is not one of {job}{nearest(task, known)}")
    chosen = getattr(job.load_splits(), split)
    count = len(chosen) if samples is None else min(samples, len(chosen))
    where = f"{job}: the {split} split"
    return (
        (lambda: checked_batches(manifest, chosen, BATCH, count, where)),
        count,
        MeasuredPair(Criteria(job.tasks).restricted(tasks), split, job.seed),
    )


def _run(
    first: ComparedRun, reference: ComparedRun, tasks: Sequence[str], data: Data, measures: MeasuredPair | None
) -> dict[str, Differences]:
    """The differences by task; `measures` gets the outputs of both sides."""
    differences = {task: Differences() for task in tasks}
    with first.session() as session, reference.session() as trusted:
        for batch, inputs in data():
            outputs = session.run(inputs, tasks), trusted.run(inputs, tasks)
            for task in tasks:
                differences[task].add(outputs[0][task], outputs[1][task])
            if measures is not None:
                measures.update(*outputs, batch)
    return differences


def _near_ties(reference: ComparedRun, task: str, over: Sequence[int], data: Data) -> list[int]:
    """Those of the samples `over` the tolerance in which rounding alone may have changed the routing."""
    if not over:
        return []
    from mtlc.export.bundle.near_ties import NEAR_TIE
    from mtlc.export.quantization.near_ties_in_bundle import BundleMargins

    with open_bundle(reference.path) as opened:
        margins = BundleMargins(opened, reference.configuration or "default")
    if not margins.sees:
        return []
    tied = []
    for place in sorted({index // BATCH for index in over}):
        _, inputs = next(islice(data(), place, None))
        least = margins.least(inputs, task)
        tied += [index for index in over if index // BATCH == place and least[index % BATCH] < NEAR_TIE]
    return tied


def _over(task: str, row: Mapping[str, Any], tolerance: float | None, count: int, over: int) -> list[str]:
    """A line if the outputs do not compare or differ by more than `tolerance`."""
    if row["max_rel"] is None:
        return [f"task {task!r}: outputs do not compare: {row['why']}"]
    if tolerance is None:
        return []
    if 2 * row["near_ties"] >= count:
        return [
            f"task {task!r}: {row['near_ties']} of {count} samples differ and have tokens "
            "whose experts are nearly tied: too many to tell rounding from a fault"
        ]
    if row["max_rel"] > tolerance:
        return [
            f"task {task!r}: {over - row['near_ties']} of {count} samples differ, by up to {row['max_rel']:.1e} of the "
            f"output's largest value (allowed {tolerance:.1e})"
        ]
    return []


def _missed(task: str, row: ComparedTask, but_for_confidence: bool) -> str:
    value, reference = ("not a number" if one is None else f"{one:.4g}" for one in (row.value, row.reference))
    measured = f"task {task!r}: {row.metric} is {value}, the reference's {reference}: max_drop {row.limit} is"
    return f"{measured} kept, but {confidence_doubt(row)}" if but_for_confidence else f"{measured} not kept"


def _by_chance(found: Mapping[str, ComparedTask], split: str) -> list[str]:
    lines = (chance_warning(task, row, row.difference, split) for task, row in found.items())
    return [line for line in lines if line is not None]
