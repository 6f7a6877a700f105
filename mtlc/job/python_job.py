"""Makes a job of objects: what a Python caller gives becomes the same `Job` that a file does.

So there is one pipeline, with one set of errors, results and caches, whichever door was taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtlc.compress.pass_interface import Pass
from mtlc.compress.passes.registry import pass_type, pass_types
from mtlc.compress.pipeline.identity import Step, evaluation_modules, modules_where_defined
from mtlc.compress.pipeline.users_code import without_file
from mtlc.compress.training.train_config import TrainConfig
from mtlc.errors import UserError, nearest
from mtlc.evaluation.sample_forms import Names
from mtlc.evaluation.splits import Splits, as_splits, fetch
from mtlc.job.job import Given, Job
from mtlc.job.python_budget import budget_section
from mtlc.job.python_task import task_sections
from mtlc.job.schema import JobFile
from mtlc.log import Log, silent
from mtlc.program.live_source import NETWORK, LiveSource
from mtlc.program.program import ModelSource
from mtlc.toml_files import validated

_DATA = "live:data"


def python_job(
    model: Any,
    tasks: Mapping[str, Any],
    train: Any,
    validation: Any = None,
    calibration: Any = None,
    *,
    verb: str,
    budget: Any = None,
    passes: Sequence[Any] = (),
    inputs: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    ignore_outputs: Sequence[str] = (),
    seed: int = 0,
    train_lr: float | None = None,
    sections: Mapping[str, Mapping[str, Any] | None] | None = None,
    log: Log = silent,
) -> Job:
    """The job of a call of `verb`, whose arguments these are; `sections` are others of a job file, by name.

    `model` may be a `ModelSource`, or None where no network is needed. Raises `UserError` naming the argument.
    """
    source = model if isinstance(model, ModelSource) or model is None else LiveSource.of(model)
    described = task_sections(tasks)
    targets = tuple(dict.fromkeys(one.get("target", name) for name, one in described.items()))
    splits = _splits(train, calibration, validation, preprocessing, Names(_texts(inputs, "inputs"), targets), log)
    found = _inputs(splits, Names(_texts(inputs, "inputs"), targets))
    if source is not None:
        _name_outputs(source, described, splits, found, log)
    steps = tuple(_step(one, index) for index, one in enumerate(_listed(passes)))
    values: dict[str, Any] = {
        "schema": 1,
        "seed": seed,
        "model": {
            "factory": NETWORK if source is None else source.factory,
            "inputs": list(found),
            "ignore_outputs": list(_texts(ignore_outputs, "ignore_outputs")),
        },
        "tasks": described,
        "data": {"factory": _DATA},
        "budget": budget_section(budget),
        "passes": [{"name": s.name, **s.config.model_dump(mode="json", exclude_unset=True)} for s in steps],
    }
    for name, section in (sections or {}).items():
        if section is not None and not isinstance(section, Mapping):
            raise UserError(f"{name} is a {type(section).__name__}: give a dict with the keys of [{name}] in a job")
        values |= {} if section is None else {name: dict(section)}
    values = {key: value for key, value in values.items() if value is not None}
    file: JobFile = validated(lambda: JobFile.model_validate(values), JobFile, f"{verb}:")
    settings = None
    if train_lr is not None:
        settings = validated(partial(TrainConfig, lr=train_lr), TrainConfig, f"{verb}: train_lr:")
    name = "network" if not isinstance(source, LiveSource) else str(source.kwargs["class"])
    job = Job(Path(name), file, steps, settings, Given(source, splits))
    if steps:
        _say_what_is_in_no_file(job, log)
    return job


def _say_what_is_in_no_file(job: Job, log: Log) -> None:
    """Tell `log` that finished steps will not be found again, where that is so."""
    modules = evaluation_modules((*job.tasks, *job.auxiliary), job.load_splits())
    if isinstance(job.source, LiveSource):
        modules |= modules_where_defined(job.source.module.modules())
    if lost := without_file(modules):
        log(
            f"what is defined in {', '.join(lost)} is in no file, so finished steps are not found again; "
            "keep networks, data sets and losses in a module"
        )


def _listed(passes: Any) -> Sequence[Any]:
    if isinstance(passes, Pass | str | Mapping | type):
        return [passes]
    if not isinstance(passes, Sequence):
        raise UserError(f"passes is a {type(passes).__name__}: give a list, such as [mtlc.Prune(round_to=16)]")
    return passes


def _step(given: Any, index: int) -> Step:
    """A pass: an object of one, its class, its name, or a dict as in a job."""
    where = f"passes[{index}]"
    if isinstance(given, str):
        given = {"name": given}
    if isinstance(given, type) and issubclass(given, Pass):
        given = given()
    if isinstance(given, Mapping):
        settings = dict(given)
        name = settings.pop("name", None)
        if not isinstance(name, str):
            raise UserError(f'{where}: has no name: give {{"name": "prune", …}} or mtlc.Prune(…)')
        try:
            kind = pass_type(name)
        except UserError as error:
            raise UserError(f"{where}: {str(error).removeprefix('[[passes]] ')}") from None
        try:
            given = kind(**settings)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    if not isinstance(given, Pass):
        raise UserError(
            f"{where} is a {type(given).__name__}: give a pass, such as mtlc.Prune(round_to=16), or its name, one of "
            f"{', '.join(pass_types())}"
        )
    try:
        known = pass_type(given.name)
    except UserError:
        known = None
    if known is not type(given):
        raise UserError(
            f"{where}: {type(given).__name__} is no pass that mtlc finds by its name {given.name!r}: name it in the "
            f"entry points mtlc.passes of a package{nearest(given.name, pass_types())}"
        )
    return Step(given.name, given.config, f"{where} {type(given).__name__}")


def _texts(given: Any, what: str) -> tuple[str, ...]:
    if given is None:
        return ()
    if isinstance(given, str):
        raise UserError(f"{what} = {given!r}: give a list: [{given!r}]")
    if not isinstance(given, Sequence) or not all(isinstance(one, str) for one in given):
        raise UserError(f"{what} = {given!r}: give a list of texts")
    return tuple(given)


def _splits(
    train: Any, calibration: Any, validation: Any, preprocessing: Mapping[str, Any] | None, names: Names, log: Log
) -> Splits:
    if train is None:
        raise UserError("train is missing: give data to train on")
    if validation is None:
        if calibration is not None or not is_whole(train):
            raise UserError(
                "validation is missing: give data that no training sees, or all splits at once as train, such as "
                "mtlc.Splits(train, calibration, validation)"
            )
        splits = as_splits(train, names, "train is", log)
        if preprocessing is not None:
            splits.preprocessing = preprocessing
        return splits
    given = {"train": train, "validation": validation, "preprocessing": preprocessing}
    if calibration is not None:
        given["calibration"] = calibration
    return as_splits(given, names, "data:", log)


def is_whole(train: Any) -> bool:
    """Whether the argument holds all splits, and not one."""
    if isinstance(train, Mapping):
        return "train" in train
    if isinstance(train, Splits):
        return True
    return isinstance(train, tuple) and len(train) in (2, 3) and not any(isinstance(one, Tensor) for one in train)


def _inputs(splits: Splits, names: Names) -> tuple[str, ...]:
    """The network's inputs, found in a sample where nobody names them."""
    sample = fetch(splits.validation, [0])
    inputs = names.of_sample(sample).inputs
    for name in inputs:
        if name not in sample:
            raise UserError(f"inputs: a sample has no {name!r}{nearest(name, sample)}")
    return inputs


def _name_outputs(
    source: ModelSource, described: dict[str, dict[str, Any]], splits: Splits, inputs: Sequence[str], log: Log
) -> None:
    """Say which outputs the tasks are, where the network gives them without names and the tasks say nothing.

    One tensor is the only task's, a tuple has them in the tasks' order.
    """
    judged = [name for name, one in described.items() if not one.get("training_only")]
    if any("output" in described[name] for name in judged):
        return
    batch = fetch(splits.validation, [0])
    try:
        with torch.no_grad():
            made = source.build().eval()(*(batch[name] for name in inputs))
    except Exception:  # told where the pipeline tries it, with all that it knows then
        return
    if isinstance(made, Tensor) and len(judged) == 1:
        described[judged[0]]["output"] = ""
    elif _are_tensors(made) and len(made) == len(judged):
        for place, name in enumerate(judged):
            described[name]["output"] = str(place)
        log(f"outputs in the order of the tasks: {', '.join(judged)}")


def _are_tensors(made: Any) -> bool:
    """Whether a network gave tensors without names."""
    plain = isinstance(made, tuple | list) and not hasattr(made, "_fields")
    return plain and all(isinstance(one, Tensor) for one in made)
