"""Works out the key of a step: a hash of everything that its numbers follow from."""

from __future__ import annotations

import hashlib
import inspect
import json
import random
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mtlc.compress.pass_interface import Budget, Pass, PassConfig
from mtlc.compress.pipeline.own_code import code_version
from mtlc.compress.pipeline.users_code import code_hash
from mtlc.evaluation.splits import Splits
from mtlc.live_objects import find, is_live
from mtlc.program.placement import compute_device, device_name
from mtlc.program.program import Program
from mtlc.tasks.task import TaskSpec


@dataclass(frozen=True)
class Step:
    """One pass of a job with its checked configuration; `where` says where it stands in the job file."""

    name: str
    config: PassConfig
    where: str


def step_key(
    program: Program,
    step: Step,
    kind: type[Pass[Any]],
    *,
    budget: Budget | None,
    seed: int,
    splits: Splits,
    reference: Program,
    train_lr: float | None = None,
) -> str:
    """SHA-256 over everything that the numbers of a step of the pass `kind` follow from."""
    described = {
        "program": program_hash(program),
        "reference": program_hash(reference),
        "pass": [step.name, step.config.model_dump(mode="json"), code_hash(_modules_of([kind]))],
        "budget": asdict(budget) if budget else None,
        "seed": seed,
        "train_lr": train_lr,
        "evaluation": evaluation_hash((*program.tasks, *program.auxiliary), splits),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


def program_hash(program: Program) -> str:
    """The content of a program: its tensors, structure and code, mtlc's too, not the times in its history."""
    described = {
        "tensors": tensors_hash(program),
        "factory": program.source.identity(),
        "history": [[entry.name, entry.config, entry.surgery] for entry in program.history],
        "example": {name: [list(value.shape), str(value.dtype)] for name, value in program.example.items()},
        "ignored": program.ignored_outputs,
        "code": [code_hash(network_modules(program)), code_version()],
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


def evaluation_hash(tasks: Sequence[TaskSpec], splits: Splits, threads: int | None = None) -> str:
    """What losses and metrics follow from beside the network: the tasks, the data, and the code of both, mtlc's too.

    And the order of summation, for sums of floats depend on it: `threads` that compute (None: torch's number now), and
    the processor's instructions that torch uses.
    """
    described = {
        "arithmetic": [
            threads or torch.get_num_threads(),
            torch.backends.cpu.get_cpu_capability(),
            device_name(compute_device()),
        ],
        "tasks": [task.to_dict() for task in tasks],
        "data": splits.identity,
        "code": [code_hash(evaluation_modules(tasks, splits)), code_version()],
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


def network_modules(program: Program) -> set[str]:
    """The modules in which the network's factory and its layers are defined."""
    named = [] if is_live(program.source.factory) else [program.source.factory]
    return _modules_named(named) | _modules_of({type(module) for module in program.module.modules()})


def evaluation_modules(tasks: Sequence[TaskSpec], splits: Splits) -> set[str]:
    """The modules in which the data's factory, the data sets, the losses and the metrics are defined."""
    named = [reference for task in tasks for reference in (task.loss, task.metric) if ":" in reference]
    named += [splits.factory] if splits.factory else []
    data = [part for split in (splits.train, splits.calibration, splits.validation) for part in _parts(split)]
    return _modules_named(named) | modules_where_defined(data)


def _parts(data: Any) -> list[Any]:
    """A data set, and what it is made of: data sets of others, and functions that make batches of their samples."""
    return [data, *(inner for part in getattr(data, "made_of", ()) for inner in _parts(part))]


def modules_where_defined(objects: Iterable[Any]) -> set[str]:
    """The modules of functions and classes, and of the classes of other objects."""
    classes, functions = set[type](), set[str]()
    for one in objects:
        if inspect.isfunction(one):
            functions.add(one.__module__)
        classes.add(one if isinstance(one, type) else type(one))
    return functions | _modules_of(classes)


def _modules_named(references: Iterable[str]) -> set[str]:
    """The modules of ``module:callable`` references, and those in which what they name is defined."""
    found = set()
    for reference in references:
        if is_live(reference):
            found |= modules_where_defined([find(reference)])
            continue
        module, _, attribute = reference.partition(":")
        target = getattr(sys.modules.get(module), attribute, None)
        found |= {module, getattr(target, "__module__", None) or module}
    return found


def _modules_of(classes: Iterable[type]) -> set[str]:
    """The modules of classes and of what they derive from."""
    return {base.__module__ for cls in classes for base in cls.__mro__}


def tensors_hash(program: Program) -> str:
    """SHA-256 over the names, shapes, types and bytes of the network's state."""
    digest = hashlib.sha256()
    for name, tensor in program.module.state_dict().items():
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


_generators = threading.RLock()


@contextmanager
def own_generators(seed: int | None = None) -> Iterator[None]:
    """Keep the generators of the process to this thread while the block runs, seeded with `seed` if one is given.

    `random`, numpy and torch have one each, whatever draws from them. Of two threads that run passes, one waits here:
    drawing in turns, each would get other numbers than alone.
    """
    with _generators:
        if seed is not None:
            seed_everything(seed)
        yield


def seed_everything(seed: int) -> None:
    """Seed every generator that a pass may draw from without saying so. See `own_generators`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
