"""Lays out the cells of a sweep, and checks every one of them before any runs."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtlc.checksums import file_checksum
from mtlc.compress.pass_interface import Context
from mtlc.compress.passes.registry import pass_type
from mtlc.compress.pipeline.identity import evaluation_modules, modules_where_defined, program_hash
from mtlc.compress.pipeline.own_code import code_version
from mtlc.compress.pipeline.users_code import code_hash
from mtlc.errors import MtlcError, UserError
from mtlc.evaluation.splits import Splits
from mtlc.hw.devices.catalogue import is_file
from mtlc.job.grid import Choices, combinations, short_names
from mtlc.job.job import Given, Job, load_job
from mtlc.job.overrides import Override
from mtlc.log import Log
from mtlc.program.placement import computing_on
from mtlc.toml_files import toml_text
from mtlc.workflows.one_at_a_time import one_at_a_time
from mtlc.workflows.opened_job import Opened, check_devices, open_job, read_baselines
from mtlc.workflows.preconditions import check_passes

CELLS = "cells"
"""The folder of all cells, in that of a sweep."""
_NAME = 60


@dataclass(frozen=True)
class Cell:
    """One run: what is set over the job, the seed, what it is called, its folder within the sweep's, and its key."""

    overrides: tuple[Override, ...]
    seed: int
    name: str
    folder: str
    key: str

    @property
    def settings(self) -> dict[str, Any]:
        """What is set, by key."""
        return {one.key: one.value for one in self.overrides}

    @property
    def texts(self) -> tuple[str, ...]:
        """What is set and the seed, as `load_job` takes them."""
        return (*(one.text for one in self.overrides), f"seed={self.seed}")


@one_at_a_time
def checked_cells(path: Path, choices: Choices, seeds: int, threads: int, device: str | None, log: Log) -> list[Cell]:
    """All cells, each combination's seeds together; the seeds are the job's and those after it.

    Every one is opened: its job is read, its network built and tried on a sample, its passes asked whether they can
    run. So what is wrong with one is told before any has run. Raises what that raises, naming the cell.
    """
    varied = [one for one in choices if one[0].key != "seed"]
    fixed = [one[0] for one in choices if one[0].key == "seed"]
    names = short_names([one[0].key for one in varied])
    jobs: list[tuple[tuple[Override, ...], Job, str]] = []
    for combination in combinations(tuple(varied)):
        start = _named(combination, names, lambda made=(*combination, *fixed): load_job(path, made))
        for seed in range(start.seed, start.seed + seeds):
            called = " ".join([*(_told(one, names) for one in combination), f"seed={seed}"])
            made = (*combination, Override("seed", seed, "--seeds"))
            jobs.append((combination, _named(combination, names, lambda made=made: load_job(path, made)), called))
    log(f"checking {len(jobs)} cells")
    opener = _Opener()
    cells = []
    for combination, job, called in jobs:
        key = _named(combination, names, lambda job=job: opener.key(job.on("cpu"), threads, device or job.device))
        cells.append(Cell(combination, job.seed, called, f"{CELLS}/{_slug(called)}-{key[:12]}", key))
    return cells


def _told(one: Override, names: dict[str, str]) -> str:
    text = one.value if isinstance(one.value, str) else toml_text(one.value)
    return f"{names[one.key]}={text}"


def _slug(name: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^\w.=%+-]+", "_", name, flags=re.ASCII).strip("_")[:_NAME]


def _named(combination: tuple[Override, ...], names: dict[str, str], what: Any) -> Any:
    """What `what` gives; its errors say which cell they are of. What `load_job` raises says so itself."""
    try:
        return what()
    except MtlcError as error:
        told = " ".join(_told(one, names) for one in combination)
        if not told or "(set: " in str(error) or str(error).startswith("--set "):
            raise
        raise type(error)(f"{told}: {error}") from error


class _Opener:
    """Opens jobs, whose data is read once where it is the same."""

    def __init__(self) -> None:
        self._splits: dict[str, Splits] = {}

    def key(self, job: Job, threads: int, device: str) -> str:
        """Check a job, and give what its results follow from: SHA-256 of its values, network, data and code."""
        check_devices(job)
        read_baselines(job)
        with computing_on("cpu"):
            opened = self._open(job)
            latency = job.file.budget is not None and job.file.budget.kind == "latency"
            # What a share of a latency is in milliseconds is measured by the run itself.
            budget = None if latency else job.budget(opened.program)
            context = Context(
                opened.splits, opened.criteria, opened.program, Path(), budget, job.seed,
                train_lr=None if job.train is None else job.train.lr,
            )  # fmt: skip
            if not latency:
                check_passes(job.steps, context)
            described = {
                "job": job.file.model_dump(mode="json", by_alias=True, exclude={"device", "track"}),
                "computed": [threads, device],
                "network": program_hash(opened.program),
                "data": opened.splits.identify(),
                "files": _files(job),
                "code": [code_version(), code_hash(evaluation_modules(job.tasks + job.auxiliary, opened.splits))],
                "passes": code_hash(modules_where_defined([pass_type(step.name) for step in job.steps])),
            }
        return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()

    def _open(self, job: Job) -> Opened:
        named = json.dumps([job.file.data.model_dump(mode="json"), job.names], default=str)
        if named not in self._splits:
            self._splits[named] = job.load_splits()
        return open_job(replace(job, given=Given(None, self._splits[named])))


def _files(job: Job) -> list[str]:
    """The checksums of further files that a job names."""
    report, budget = job.file.report, job.file.budget
    named = [
        name for name in (*report.devices, *([budget.device] if budget and budget.device else [])) if is_file(name)
    ]
    named += [report.baselines] if report.baselines else []
    try:
        return [file_checksum(job.resolve_path(name)) for name in named]
    except OSError as error:
        raise UserError(f"[report]: {error.filename}: cannot be read ({error.strerror})") from None
