"""Holds a network with its tasks, its example inputs and the history of what was done to it: `Program`.

A checkpoint is a folder: ``program.json`` (factory reference, tasks, history, versions) and ``model.safetensors``.
Loading builds the network from its factory, replays the recorded surgery and loads the tensors. There is no pickle, and
a checkpoint does not get to name the code that runs: the factory comes from the job, or is one of `ZOO_NETWORKS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mtlc
from mtlc.checksums import value_checksum
from mtlc.errors import MtlcError, UserError, nearest, one_line, reason
from mtlc.files import atomic_folder, check_plain
from mtlc.live_objects import is_live
from mtlc.program import surgery
from mtlc.program.out_of_memory import is_out_of_memory
from mtlc.program.outputs import task_outputs
from mtlc.program.placement import device_of
from mtlc.program.plain_state import copied
from mtlc.program.structure import check_structure
from mtlc.program.tensors_file import load_tensors, save_tensors
from mtlc.program.usable_network import usable_network
from mtlc.references import call
from mtlc.tasks.task import TaskSpec, check_names

SCHEMA = 1
_DESCRIPTION, _TENSORS = "program.json", "model.safetensors"
_KEYS = (
    "factory", "kwargs", "tasks", "inputs", "input_dtypes", "preprocessing", "ignored_outputs", "history", "versions",
)  # fmt: skip

ZOO_NETWORKS = frozenset(
    {
        "mtlc.zoo:m3vit", "mtlc.zoo.m3vit:m3vit",
        "mtlc.zoo:mtl_lenet", "mtlc.zoo.lenet:mtl_lenet",
        "mtlc.zoo:mtl_resnet", "mtlc.zoo.resnet:mtl_resnet",
        "mtlc.zoo:mtl_resnet_classifier", "mtlc.zoo.resnet_classifier:mtl_resnet_classifier",
        "mtlc.zoo:mtl_yolo", "mtlc.zoo.yolo:mtl_yolo",
    }
)  # fmt: skip
"""The factories that a checkpoint alone may name. They make a network and do nothing else; others of `mtlc.zoo`, and
what its modules import, read and write files where their arguments say."""


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _shapes(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape) for shape in value.values()
    )


def _entries(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("config"), dict)
        and isinstance(entry.get("report"), dict)
        and isinstance(entry.get("surgery"), list)
        and all(isinstance(step, dict) for step in entry["surgery"])
        for entry in value
    )


def _tasks(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(task, dict) and all(isinstance(task.get(key), str) for key in ("name", "loss", "metric"))
        for task in value
    )


_TYPES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "factory": ("a text", lambda value: isinstance(value, str)),
    "kwargs": ("an object", lambda value: isinstance(value, dict)),
    "tasks": ("a list of tasks with a name, a loss and a metric", _tasks),
    "auxiliary": ("a list of tasks with a name, a loss and a metric", _tasks),
    "inputs": ("an object of lists of sizes", _shapes),
    "input_dtypes": ("an object of texts", lambda value: isinstance(value, dict) and _texts(list(value.values()))),
    "preprocessing": ("an object or null", lambda value: value is None or isinstance(value, dict)),
    "ignored_outputs": ("a list of texts", _texts),
    "history": ("a list of passes with a name, config, surgery and report", _entries),
}
"""What each part of ``program.json`` must be, in words and as a check."""


@dataclass(frozen=True)
class ModelSource:
    """Where the network comes from: a ``module:callable`` reference and its keyword arguments."""

    factory: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """The network that the factory makes, called anew. Raises `UserError` for one that mtlc cannot work on."""
        return usable_network(call(self.factory, "[model] factory", **self.kwargs), self.factory)

    def identity(self) -> list[Any]:
        """JSON values: all that a network of this source follows from, besides its code and its tensors."""
        return [self.factory, self.kwargs]

    def of_checkpoint(self, folder: Path, factory: str, kwargs: Mapping[str, Any]) -> ModelSource:
        """This source with what the checkpoint in `folder` says of its own. Raises `UserError` where it is another."""
        if is_live(factory):  # made of an object; whether this is a network of its layers shows when it is built
            return self
        if self.factory != factory:
            raise UserError(f"{folder}: made by factory {factory!r}, but the job names {self.factory!r}")
        return ModelSource(factory, kwargs)


@dataclass(frozen=True)
class HistoryEntry:
    """One pass that was run: its name and config, the surgery that replays it, and what it reported."""

    name: str
    config: Mapping[str, Any]
    surgery: Sequence[surgery.Step]
    report: Mapping[str, Any]


@dataclass(frozen=True)
class Program:
    """A network of several tasks. Passes return a new one; the module of the old one is left as it was.

    `example` holds one small batch for each of the network's positional inputs, by name. `auxiliary` are tasks whose
    outputs exist in training mode only: they are trained with, and are in no bundle.
    """

    module: nn.Module
    tasks: tuple[TaskSpec, ...]
    example: Mapping[str, Tensor]
    source: ModelSource
    history: tuple[HistoryEntry, ...] = ()
    preprocessing: Mapping[str, Any] | None = None
    ignored_outputs: tuple[str, ...] = ()
    auxiliary: tuple[TaskSpec, ...] = ()

    def __post_init__(self) -> None:
        check_names(task.name for task in (*self.tasks, *self.auxiliary))

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self.example)

    def example_inputs(self) -> tuple[Tensor, ...]:
        return tuple(self.example.values())

    def outputs(self, batch: Mapping[str, Tensor], tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Run the network on a batch: ``{task: tensor}``, for all tasks or some.

        The outputs are where the network is; the batch is brought there. A network that says whether it is
        `task_conditioned` takes the tasks as a further argument, and runs no others.
        """
        device = device_of(self.module)
        inputs = [v if (v := batch[name]).device == device else v.to(device) for name in self.inputs]
        if tasks is None:
            return task_outputs(self.module(*inputs), self.tasks, self.ignored_outputs)
        names = set(tasks)
        asked = [task for task in self.tasks if task.name in names]
        if hasattr(self.module, "task_conditioned"):
            tree = self.module(*inputs, tuple(task.output_key for task in asked))
            return task_outputs(tree, asked, self.ignored_outputs)
        every = task_outputs(self.module(*inputs), self.tasks, self.ignored_outputs)
        return {task.name: every[task.name] for task in asked}

    def outputs_on_data(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`outputs` of the user's network on the user's data: whatever its forward raises is a one-line `UserError`.

        A batch that does not fit in memory is run in halves: in evaluation mode samples do not know of each other.
        """
        try:
            return self.outputs(batch)
        except MtlcError:
            raise
        except Exception as error:
            halves = self._halves(batch) if is_out_of_memory(error) else None
            if halves is None:
                shapes = ", ".join(f"{name} {tuple(batch[name].shape)}" for name in self.inputs if name in batch)
                raise UserError(f"[model] the network cannot run on the data ({shapes}): {one_line(error)}") from error
        # The error is gone here, and with it what its frames held.
        one, other = (self.outputs_on_data(half) for half in halves)
        return {task: torch.cat([one[task], other[task]]) for task in one}

    def _halves(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
        """The first and the second half of a batch's samples; None where they may know of each other, or of one."""
        count = len(batch[next(iter(self.inputs))])
        alike = all(len(batch[name]) == count for name in self.inputs)
        if count < 2 or not alike or self.module.training or torch.is_grad_enabled():
            return None
        middle, given = count // 2, {name: batch[name] for name in self.inputs}
        return {k: v[:middle] for k, v in given.items()}, {k: v[middle:] for k, v in given.items()}

    def clone(self) -> Program:
        """The same program with a module of its own."""
        return replace(self, module=copied(self.module))

    def after(self, module: nn.Module, entry: HistoryEntry) -> Program:
        """The program that a pass returns: a new module, and one more entry of history."""
        return replace(self, module=module, history=(*self.history, entry))

    def restricted(self, names: Iterable[str]) -> Program:
        """The program of some of its tasks, in their order here.

        A network with a method ``keep_tasks`` drops the gates and heads of the others, in a copy; of any other network
        their outputs are ignored. Tasks that are only trained with go, as nobody knows whose they are.
        Raises `UserError` for a task that is not the program's, and for none.
        """
        asked = list(names)
        for name in asked:
            if name not in self.task_names:
                raise UserError(f"the network has no task {name!r}{nearest(str(name), self.task_names)}")
        if not asked:
            raise UserError(f"no task to keep: name one or more of {', '.join(self.task_names)}")
        tasks = tuple(task for task in self.tasks if task.name in asked)
        if len(tasks) == len(self.tasks):
            return self
        keys = list(dict.fromkeys(task.output_key for task in tasks))
        if not hasattr(self.module, "keep_tasks"):
            ignored = [task.output_key for task in self.tasks if task.output_key not in keys]
            return replace(self, tasks=tasks, auxiliary=(), ignored_outputs=(*self.ignored_outputs, *ignored))
        module = copied(self.module)
        step = {"kind": "tasks", "tasks": [key for key in getattr(module, "tasks", keys) if key in keys]}
        with torch.no_grad():
            surgery.replay(module, self.example_inputs(), [step])
        return replace(self, tasks=tasks, auxiliary=()).after(module, HistoryEntry("tasks", {}, [step], {}))

    def parameters_count(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    def save(self, folder: Path) -> None:
        """Write the checkpoint atomically: the folder appears whole or not at all."""
        description = {
            "schema": SCHEMA,
            "factory": self.source.factory,
            "kwargs": dict(self.source.kwargs),
            "tasks": [task.to_dict() for task in self.tasks],
            "inputs": {name: list(tensor.shape) for name, tensor in self.example.items()},
            "input_dtypes": {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in self.example.items()},
            "preprocessing": self.preprocessing,
            "ignored_outputs": list(self.ignored_outputs),
            "history": [
                {"name": e.name, "config": dict(e.config), "surgery": list(e.surgery), "report": dict(e.report)}
                for e in self.history
            ],
            "versions": {"mtlc": mtlc.__version__, "torch": torch.__version__},
        }
        if self.auxiliary:
            description["auxiliary"] = [task.to_dict() for task in self.auxiliary]
        with atomic_folder(folder) as temporary:
            text = json.dumps(description | {"sha256": value_checksum(description)}, indent=1)
            (temporary / _DESCRIPTION).write_text(text + "\n")
            save_tensors(self.module, temporary / _TENSORS)

    @classmethod
    def load(cls, folder: Path, source: ModelSource | None = None) -> Program:
        """Read a checkpoint. `source` is the job's or the caller's; without it only `ZOO_NETWORKS` are built."""
        description = read_description(folder)
        factory, kwargs = description["factory"], description["kwargs"]
        if source is None:
            if is_live(factory):
                raise UserError(
                    f"{folder}: made of a network in Python; give a fresh one: mtlc.load(path, model), or --job with "
                    "a factory of it"
                )
            if not is_zoo_network(factory):
                raise UserError(
                    f"{folder}: its factory {factory!r} is not from mtlc.zoo; name the job that trusts it (--job)"
                )
            source = ModelSource(factory, kwargs)
        source = source.of_checkpoint(folder, factory, kwargs)
        module = source.build()
        if is_live(factory):
            check_structure(folder, kwargs, module)
        try:
            example = {
                name: torch.zeros(shape, dtype=getattr(torch, description["input_dtypes"][name]))
                for name, shape in description["inputs"].items()
            }
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError, OverflowError) as error:
            raise UserError(f"{folder / 'program.json'}: damaged: inputs: {one_line(error)}") from error
        history = tuple(HistoryEntry(**entry) for entry in description["history"])
        tasks = tuple(TaskSpec.from_dict(task) for task in description["tasks"])
        for entry in history:
            try:
                surgery.replay(module, tuple(example.values()), entry.surgery)
            except MtlcError:
                raise
            except Exception as error:  # a step is data: what a wrong one makes torch or Python raise, it decides
                raise UserError(
                    f"{folder / _DESCRIPTION}: damaged: history: {entry.name!r}: {one_line(error)}"
                ) from error
        load_tensors(module, folder / _TENSORS)
        _check_sum(folder, description)
        return cls(
            module.eval(),
            tasks,
            example,
            source,
            history,
            description["preprocessing"],
            tuple(description["ignored_outputs"]),
            tuple(TaskSpec.from_dict(task) for task in description.get("auxiliary", ())),
        )


def _check_sum(folder: Path, description: dict[str, Any]) -> None:
    """Raise `UserError` where ``program.json`` is not what was written, though it reads.

    What does not even read is told before, more to the point. Checkpoints of mtlc 0.1.0 have no checksum.
    """
    checksum = description.pop("sha256", None)
    if checksum is not None and checksum != value_checksum(description):
        raise UserError(
            f"{folder / _DESCRIPTION}: altered or damaged: its SHA-256 is not the one that was written; "
            "make the checkpoint again"
        )


def is_zoo_network(factory: object) -> bool:
    """Whether a checkpoint's `factory` is one of `ZOO_NETWORKS`."""
    return isinstance(factory, str) and factory in ZOO_NETWORKS


def read_description(folder: Path) -> dict[str, Any]:
    """The ``program.json`` of a checkpoint."""
    path = Path(folder) / _DESCRIPTION
    check_plain(path)
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{folder}: not a checkpoint (no program.json)") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or reason(error)})") from None
    except (ValueError, RecursionError) as error:  # not JSON or not text; nested too deep
        raise UserError(f"{path}: damaged: {one_line(error)}") from None
    if not isinstance(description, dict) or description.get("schema") != SCHEMA:
        raise UserError(
            f"{path}: schema {description.get('schema') if isinstance(description, dict) else None!r}, "
            f"this mtlc reads {SCHEMA}"
        )
    missing = [key for key in _KEYS if key not in description]
    if missing:
        raise UserError(f"{path}: damaged: {missing[0]!r} is missing")
    for key, (kind, fits) in _TYPES.items():
        if key in description and not fits(description[key]):
            raise UserError(f"{path}: damaged: {key!r} must be {kind}")
    for key, make in (
        ("tasks", TaskSpec.from_dict),
        ("auxiliary", TaskSpec.from_dict),
        ("history", lambda entry: HistoryEntry(**entry)),
    ):
        try:
            for entry in description.get(key, ()):
                make(entry)
        except (TypeError, AttributeError, ValueError, KeyError) as error:
            raise UserError(f"{path}: damaged: {key}: {one_line(error)}") from error
    return description
