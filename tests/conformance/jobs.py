"""Writes the jobs of one network: to plan and prune it, to export it as it is, to slim it, to keep some experts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conformance.case import Case


@dataclass(frozen=True)
class Outputs:
    """What a network returns: the shapes of its tasks' outputs by output key, without the batch; what is no task."""

    tasks: Mapping[str, tuple[int, ...]]
    ignored: tuple[str, ...]


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What a network returns, by key as jobs name it: ``"depth"``, ``"0"``, ``"aux.0"``, ``""`` for a lone tensor."""
    if isinstance(tree, Mapping):
        items: Any = ((str(key), value) for key, value in tree.items())
    elif isinstance(tree, tuple | list):
        items = ((str(index), value) for index, value in enumerate(tree))
    else:
        if tree is not None:
            yield prefix, tree
        return
    for key, value in items:
        yield from leaves(value, f"{prefix}.{key}" if prefix else key)


def outputs(module: nn.Module, case: Case) -> Outputs:
    """Run the network once in each mode. Tasks are its tensors of floats when it evaluates; all else is no task."""
    found: dict[bool, dict[str, Any]] = {}
    example = torch.randn(2, *case.shape, generator=torch.Generator().manual_seed(0))
    for mode in (True, False):
        module.train(mode)
        with torch.no_grad():
            found[mode] = dict(leaves(module(example)))
    tensors = {
        key: value for key, value in found[False].items() if isinstance(value, Tensor) and value.is_floating_point()
    }
    tasks = {key: tuple(value.shape[1:]) for key, value in tensors.items() if key not in case.ignore}
    others = {*found[True], *found[False]} - set(tasks)
    return Outputs(tasks, tuple(sorted(key for key in others if key in case.ignore or _is_tensor(found, key))))


def _is_tensor(found: Mapping[bool, Mapping[str, Any]], key: str) -> bool:
    return any(isinstance(found[mode].get(key), Tensor) for mode in found)


def task_name(key: str) -> str:
    """The task of an output: its key with an underscore for whatever no task's name may have."""
    return re.sub(r"\W", "_", key) if key and not key[0].isdigit() else f"out{re.sub(r'[^0-9a-zA-Z]', '_', key)}"


HEAD = """\
schema = 1
[model]
factory = "conformance.catalogue:build"
ignore_outputs = {ignored}
[model.args]
name = "{name}"
[data]
factory = "conformance.noise:splits"
[data.args]
shape = {shape}
targets = {{ {targets} }}
[report]
devices = []
pictures = 0
"""
QUANTIZE = """\
[quantize]
samples = 4
control = 4
"""
TASK = """\
[tasks.{name}]
loss = "mse"
metric = "mse"
output = "{key}"
"""
PRUNE = """\
[budget]
macs = "{budget}"
[[passes]]
name = "prune"
round_to = 4
rounds = 1
sensitivity = []
recalibrate = 8
finetune = {{ epochs = 1, lr = 1e-5, batch_size = 4, recalibrate = 8 }}
"""
SLIM = """\
[[passes]]
name = "slim"
widths = [0.5, 1.0]
round_to = 4
importance = "norm"
recalibrate = 8
[passes.train]
epochs = 1
lr = 1e-5
batch_size = 4
configurations = 2
"""
EXTRACT = """\
[[passes]]
name = "extract"
tasks = ["{task}"]
by = "budget"
[budget]
params = "{budget}"
"""


def write_job(folder: Path, case: Case, found: Outputs, name: str, *more: str) -> Path:
    """``NAME.toml`` in `folder`: the network with its tasks and data, and the sections `more`."""
    folder.mkdir(parents=True, exist_ok=True)
    targets = ", ".join(f"{task_name(key)} = {list(shape)}" for key, shape in found.tasks.items())
    text = HEAD.format(name=case.name, ignored=list(found.ignored), shape=list(case.shape), targets=targets)
    text += "".join(TASK.format(name=task_name(key), key=key) for key in found.tasks)
    path = folder / f"{name}.toml"
    path.write_text(text.replace("'", '"') + "".join(more))
    return path
