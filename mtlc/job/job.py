"""Reads and checks a job file, and builds what it names: data, network, budget, passes.

A job names code (`module:callable`), which is imported and called: treat a job from a stranger as a program from a
stranger. Reading a job imports torch only when it has passes or a `[train]` section, whose settings live beside the
code that uses them.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from mtlc.errors import UserError, nearest
from mtlc.job.schema import PARAMETER_BYTES, JobFile
from mtlc.tasks.task import Limit, TaskSpec
from mtlc.toml_files import parse_toml, read_text, validated

if TYPE_CHECKING:
    from mtlc.compress.pass_interface import Budget
    from mtlc.compress.pipeline.identity import Step
    from mtlc.evaluation.splits import Splits
    from mtlc.program.program import ModelSource, Program


@dataclass(frozen=True)
class Job:
    """A job that was read and found valid. Relative paths in it are relative to the folder of its file."""

    path: Path
    file: JobFile
    steps: tuple[Step, ...] = ()
    train: Any = None

    @property
    def seed(self) -> int:
        return self.file.seed

    @cached_property
    def tasks(self) -> tuple[TaskSpec, ...]:
        made = []
        for name, section in self.file.tasks.items():
            values = section.model_dump()
            limit = values.pop("max_drop")
            made.append(TaskSpec(name=name, max_drop=None if limit is None else Limit.parse(limit), **values))
        return tuple(made)

    @property
    def source(self) -> ModelSource:
        from mtlc.program.program import ModelSource

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

    def load_splits(self) -> Splits:
        """Call the data factory with `[data.args]`, and with `root` if it is given. Raises `UserError`."""
        from mtlc.evaluation.splits import load_splits

        section, kwargs = self.file.data, dict(self.file.data.args)
        if section.root is not None:
            kwargs["root"] = str(self.resolve_path(section.root))
        return load_splits(section.factory, **kwargs)

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
        )  # fmt: skip
        with torch.inference_mode():
            program.outputs_on_data(batch)
        return program

    def budget(self, program: Program) -> Budget | None:
        """The budget in absolute numbers: shares are of `program`, the original. A latency share is measured.

        A memory budget is one in parameters, four bytes to each.
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
        original = macs(program) if section.kind == "macs" else parameters(program)
        return Budget(section.kind, section.quantity.absolute(original))


def load_job(path: Path | str) -> Job:
    """Read and check a job file. Its folder goes on ``sys.path``, so that factories may stand beside it.

    Raises `UserError`, one line with the file and the key, for anything that is not right.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name the job file, such as {path / 'job.toml'}")
    text = read_text(path, "no such file; `mtlc init` writes a job to start from")
    values = parse_toml(text, path.name)
    file: JobFile = validated(lambda: JobFile.model_validate(values), JobFile, path.name)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return Job(path, file, _steps(file, text, path.name), _train(file, path.name))


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
