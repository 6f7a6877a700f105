"""Finds each task's output in whatever a network returns: a dict, a tuple, a tensor, or nests of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mtlc.errors import UserError, nearest
from mtlc.tasks.task import TaskSpec


def flatten_outputs(tree: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a model's output by key: ``"depth"``, ``"0"``, nested ``"aux.0"``, ``""`` for a lone tensor."""
    if isinstance(tree, Tensor):
        return {prefix: tree}
    if isinstance(tree, Mapping):
        items: Any = ((str(key), value) for key, value in tree.items())
    elif isinstance(tree, tuple | list):
        items = ((str(index), value) for index, value in enumerate(tree))
    elif tree is None:
        return {}
    else:
        raise UserError(f"the model returned a {type(tree).__name__}: return a tensor, a tuple or a dict of tensors")
    flat: dict[str, Tensor] = {}
    for key, value in items:
        flat.update(flatten_outputs(value, f"{prefix}.{key}" if prefix else key))
    return flat


def task_outputs(tree: Any, tasks: Sequence[TaskSpec], ignored: Sequence[str] = ()) -> dict[str, Tensor]:
    """Map a model's output to tasks. An output without a task, or a task without its output, is an error."""
    flat = flatten_outputs(tree)
    result: dict[str, Tensor] = {}
    for task in tasks:
        if task.output_key not in flat:
            raise UserError(
                f"task {task.name!r}: the model has no output {task.output_key!r}{nearest(task.output_key, flat)}"
            )
        result[task.name] = flat[task.output_key]
    mapped = {task.output_key for task in tasks}
    for key in flat:
        if key not in mapped and key not in ignored:
            raise UserError(
                f"the model's output {key!r} maps to no task: add [tasks.NAME] output = {key!r}, "
                "or list it in [model] ignore_outputs"
            )
    return result
