"""Reads and checks a job file, and builds what it names: data, network, budget, passes.

A job names code (`module:callable`), which is imported and called: treat a job from a stranger as a program from a
stranger. Reading a job imports torch only when it has passes or a `[train]` section, whose settings live beside the
code that uses them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from mtlc.errors import UserError, nearest
from mtlc.job.overrides import Override, Overrides, overridden, read_overrides
from mtlc.job.schema import PARAMETER_BYTES, JobFile
from mtlc.log import Log, silent
from mtlc.tasks.task import Limit, TaskSpec
from mtlc.toml_files import parse_toml, read_text, toml_file, toml_text, validated

if TYPE_CHECKING:
    from mtlc.compress.pass_interface import Budget
    from mtlc.compress.pipeline.identity import Step
    from mtlc.evaluation.sample_forms import Names
    from mtlc.evaluation.splits import Splits
    from mtlc.program.program import ModelSource, Program


@dataclass(frozen=True)
class Given:
    """The objects of a Python caller, which stand for what a job's file names.

    `source` makes the network; None where a job needs none, as one that only quantises a bundle.
    """

    source: ModelSource | None
    splits: Splits


@dataclass(frozen=True)
class Job:
    """A job that was read and found valid. Relative paths in it are relative to the folder of its file.

    `overrides` are what a caller set over the file; all else is of the job with them. What is `given` comes from Python
    (`mtlc.job.python_job`): then `path` is a name for the network, and there is no file of it.
    """

    path: Path
    file: JobFile
    steps: tuple[Step, ...] = ()
    train: Any = None
    given: Given | None = None
    overrides: tuple[Override, ...] = ()
    text: str = field(default="", repr=False)
    """The file as it was read; empty for a job of a Python caller."""

    def __str__(self) -> str:
        return str(self.path)

    @property
    def changes(self) -> dict[str, Any]:
        """What was set over the file: values by key, None for one that was removed."""
        return {one.key: one.value for one in self.overrides}

    def as_run(self) -> str | None:
        """The text of a job file that does what this job does; None for a job of a Python caller.

        It is the file itself where nothing was set over it.
        """
        if self.given is not None:
            return None
        values = overridden(parse_toml(self.text, self.path.name), self.overrides)
        told = [f"# set: {toml_text(one.text)}" for one in self.overrides]
        if values.get("device", "auto") != self.device:
            told.append(f"# set: {toml_text(f'device={toml_text(self.device)}')}")
        if not told:
            return self.text
        head = f"# {toml_text(self.path.name)} as it was run; relative paths are relative to the folder of that file."
        return "\n".join([head, *told, "", toml_file(values | {"device": self.device})])

    @property
    def seed(self) -> int:
        return self.file.seed

    @property
    def device(self) -> str:
        """What torch computes on: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``."""
        return self.file.device

    def on(self, device: str | None) -> Job:
        """The same job on another device; on its own where that is None."""
        return self if device is None else replace(self, file=self.file.model_copy(update={"device": device}))

    @cached_property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """The tasks that are judged and exported."""
        return tuple(task for task in self._all_tasks if not task.training_only)

    @cached_property
    def auxiliary(self) -> tuple[TaskSpec, ...]:
        """The tasks that are only trained with."""
        return tuple(task for task in self._all_tasks if task.training_only)

    @cached_property
    def _all_tasks(self) -> tuple[TaskSpec, ...]:
        made = []
        for name, section in self.file.tasks.items():
            values = section.model_dump()
            limit = values.pop("max_drop")
            values["metric"] = values["metric"] or ""
            made.append(TaskSpec(name=name, max_drop=None if limit is None else Limit.parse(limit), **values))
        return tuple(made)

    @property
    def source(self) -> ModelSource:
        from mtlc.program.program import ModelSource

        if self.given is not None and self.given.source is not None:
            return self.given.source
        return ModelSource(self.file.model.factory, self.file.model.args)

    def resolve_path(self, text: str) -> Path:
        """A path of the job, relative to the job's folder."""
        return self.path.parent / Path(text).expanduser()

    def resolve_device(self, name: str) -> str:
        """A device of the job: its name, or the path of its file, relative to the job's folder."""
        from mtlc.hw.devices.catalogue import is_file

        return str(self.resolve_path(name)) if is_file(name) else name

    @property
    def weights(self) -> Path | None:
        return self.resolve_path(self.file.model.weights) if self.file.model.weights else None

    @property
    def names(self) -> Names:
        """What the parts of a sample are called."""
        from mtlc.evaluation.sample_forms import Names

        targets = dict.fromkeys(task.target_key for task in self._all_tasks)
        return Names(tuple(self.file.model.inputs), tuple(targets))

    def load_splits(self, log: Log = silent) -> Splits:
        """Call the data factory with `[data.args]`, and with `root` if it is given. Raises `UserError`.

        `log` is told what is taken for granted, such as where a calibration split comes from.
        """
        from mtlc.evaluation.splits import load_splits

        if self.given is not None:
            return self.given.splits
        section, kwargs = self.file.data, dict(self.file.data.args)
        if section.root is not None:
            kwargs["root"] = str(self.resolve_path(section.root))
        return load_splits(section.factory, self.names, log, **kwargs)

    def build_program(self, splits: Splits, *, weights: bool = True) -> Program:
        """The network of the job with its weights, its example inputs shaped like the calibration split's samples.

        The factory runs under the job's seed. The network is run once: outputs that map to no task, and a forward
        that raises, are `UserError`s here and not an hour later.
        """
        import torch

        from mtlc.compress.pipeline.identity import own_generators
        from mtlc.evaluation.splits import fetch
        from mtlc.program.program import Program
        from mtlc.program.tensors_file import load_tensors

        with own_generators():
            torch.manual_seed(self.seed)
            module = self.source.build()
        if weights and self.weights is not None:
            if not self.weights.exists():
                raise UserError(
                    f"[model] weights: {self.weights} does not exist; make it with: mtlc train {self.path.name}"
                )
            load_tensors(module, self.weights)
        batch = fetch(splits.calibration, [0])
        for name in self.file.model.inputs:
            if name not in batch:
                raise UserError(f"[model] inputs: a sample has no {name!r}{nearest(name, batch)}")
        # Batch 2: a batch norm cannot train on one sample, and an axis of size 1 hides mistakes in reshapes.
        example = {
            name: torch.zeros((2, *batch[name].shape[1:]), dtype=batch[name].dtype) for name in self.file.model.inputs
        }
        program = Program(
            module.eval(), self.tasks, example, self.source,
            preprocessing=splits.preprocessing, ignored_outputs=tuple(self.file.model.ignore_outputs),
            auxiliary=self.auxiliary,
        )  # fmt: skip
        with torch.inference_mode():
            program.outputs_on_data(batch)
        return program

    def budget(self, program: Program, counted: int | None = None) -> Budget | None:
        """The budget in absolute numbers: shares are of `program`, the original. A latency share is measured.

        `counted` are its MACs where they are known already. A memory budget is one in parameters, four bytes to each.
        """
        from mtlc.compress.pass_interface import Budget
        from mtlc.hw.cost.count import macs, parameters
        from mtlc.hw.measure.program_latency import latency_ms

        section = self.file.budget
        if section is None:
            return None
        if section.kind == "latency":
            device = self.resolve_device(section.device or "local-cpu")
            original = latency_ms(program, device) if section.quantity.relative else 0.0
            return Budget("latency", section.quantity.absolute(original), device)
        if section.kind == "memory":
            return Budget("params", section.quantity.absolute(PARAMETER_BYTES * parameters(program)) / PARAMETER_BYTES)
        original = parameters(program)
        if section.kind == "macs":
            original = macs(program) if counted is None else counted
        return Budget(section.kind, section.quantity.absolute(original))


def load_job(path: Path | str | Job, overrides: Overrides = ()) -> Job:
    """Read and check a job file. Its folder goes on ``sys.path``, so that factories may stand beside it.

    `overrides` are set over the file's values before they are checked: values by key, ``{"passes.0.round_to": 16}``, or
    texts as ``--set`` takes them, ``["passes.0.round_to=16"]``. A job that was read already comes back as it is.

    Raises `UserError`, one line with the file and the key, for anything that is not right.
    """
    made = read_overrides(overrides)
    if isinstance(path, Job):
        if not made:
            return path
        if path.given is not None:
            raise UserError(f"overrides: {path} is a job of Python objects: change what you give instead")
        made, path = (*path.overrides, *made), path.path
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name the job file, such as {path / 'job.toml'}")
    text = read_text(path, "no such file; `mtlc init` writes a job to start from")
    values = overridden(parse_toml(text, path.name), made)
    try:
        return _checked(path, text, values, made)
    except UserError as error:
        if not made:
            raise
        raise UserError(f"{error} (set: {', '.join(map(str, made))})") from None


def _checked(path: Path, text: str, values: Mapping[str, Any], overrides: tuple[Override, ...]) -> Job:
    file: JobFile = validated(lambda: JobFile.model_validate(values), JobFile, path.name)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    read = "" if any(one.key == "passes" for one in overrides) else text  # the lines of other passes say nothing
    return Job(
        path, file, _steps(file, read, path.name), _train(file, path.name), overrides=overrides, text=text,
    )  # fmt: skip


def _strictly(config: type[BaseModel], values: dict[str, Any]) -> Any:
    """`config` made of TOML values without converting any: by way of JSON, where a strict tuple may be an array."""
    return config.model_validate_json(json.dumps(values, default=str), strict=True)


def _train(file: JobFile, name: str) -> Any:
    if file.train is None:
        return None
    from mtlc.compress.training.train_config import TrainConfig

    return validated(partial(_strictly, TrainConfig, file.train), TrainConfig, f"{name}: [train]")


def _steps(file: JobFile, text: str, name: str) -> tuple[Step, ...]:
    if not file.passes:
        return ()
    from mtlc.compress.passes.registry import pass_type
    from mtlc.compress.pipeline.identity import Step

    headers = [number for number, line in enumerate(text.splitlines(), 1) if re.match(r"\s*\[\[\s*passes\s*\]\]", line)]
    steps = []
    for index, entry in enumerate(file.passes):
        where = f"[[passes]] {index + 1}"
        if len(headers) == len(file.passes):  # passes may also be written as one inline array, which has no headers
            where += f" (line {headers[index]})"
        config = dict(entry)
        pass_name = config.pop("name", None)
        if not isinstance(pass_name, str):
            raise UserError(f'{name}: {where} name: this key is required, such as name = "prune"')
        try:
            cls = pass_type(pass_name)
        except UserError as error:
            raise UserError(f"{name}: {where}: {str(error).removeprefix('[[passes]] ')}") from None
        settings = validated(partial(_strictly, cls.Config, config), cls.Config, f"{name}: {where} {pass_name!r}")
        steps.append(Step(pass_name, settings, f"{where} {pass_name!r}"))
    return tuple(steps)
