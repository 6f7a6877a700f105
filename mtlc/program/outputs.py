"""Finds each task's output in whatever a network returns: a dict, a tuple, a tensor, or nests of them."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from mtlc.errors import UserError, nearest
from mtlc.tasks.task import TaskSpec

_SAYINGS = (str, bytes, bool, int, float, complex, enum.Enum, torch.dtype, torch.device, torch.layout)
"""What a network may return beside its tensors: a version, a scale, a name. It is passed over."""


def flatten_outputs(tree: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a model's output by key: ``"depth"``, ``"0"``, nested ``"aux.0"``, ``""`` for a lone tensor.

    Dataclasses and named tuples have their fields' names as keys. Numbers, texts and None among them are passed over.
    Raises `UserError` that names the place of anything else.
    """
    if isinstance(tree, Tensor):
        return {prefix: tree}
    if tree is None or isinstance(tree, _SAYINGS):
        return {}
    items = _parts(tree)
    if items is None:
        kind = type(tree)
        place = f" at {prefix!r}" if prefix else ""
        raise UserError(
            f"the model returned a {kind.__name__} (of {kind.__module__}){place}, in which no output is found: return "
            "tensors, alone or in tuples, lists, dicts or dataclasses"
        )
    flat: dict[str, Tensor] = {}
    for key, value in items:
        flat.update(flatten_outputs(value, f"{prefix}.{key}" if prefix else key))
    return flat


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors that a network, or a layer of it, returns, in their order; anything else is passed over.

    torch's own `tree_leaves` takes a dataclass that nobody has registered for one leaf.
    """
    if isinstance(tree, Tensor):
        return [tree]
    return [tensor for _, value in _parts(tree) or () for tensor in tensors_in(value)]


def _parts(tree: Any) -> Iterator[tuple[str, Any]] | None:
    """What a container holds, by key; None for what is no container."""
    if isinstance(tree, Mapping):
        return ((str(key), value) for key, value in tree.items())
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return zip(tree._fields, tree, strict=True)
    if isinstance(tree, tuple | list):
        return ((str(index), value) for index, value in enumerate(tree))
    if is_dataclass(tree) and not isinstance(tree, type):
        return ((field.name, getattr(tree, field.name)) for field in fields(tree))
    return None


def is_ignored(key: str, ignored: Sequence[str]) -> bool:
    """Whether an output is in ``[model] ignore_outputs``: by its key, a part that it lies in, or a pattern."""
    return any(key == one or key.startswith(f"{one}.") or fnmatchcase(key, one) for one in ignored)


def task_outputs(
    tree: Any, tasks: Sequence[TaskSpec], ignored: Sequence[str] = (), *, training: bool = False
) -> dict[str, Tensor]:
    """Map a model's output to tasks. An output without a task, or a task without its output, is an error.

    With `training` the output is one of training mode: tasks may have other keys there, and what maps to none of them
    is no error, since it is there in that mode only (`unnamed`).
    """
    flat = flatten_outputs(tree)
    result: dict[str, Tensor] = {}
    for task in tasks:
        key = task.training_key if training else task.output_key
        if key not in flat:
            raise UserError(f"task {task.name!r}: {_missing(key, flat, training)}")
        result[task.name] = flat[key]
    if not training:
        for key in unnamed(flat, tasks, ignored):
            raise UserError(
                f"the model's output {key!r} maps to no task: add [tasks.NAME] output = {key!r}, "
                "or list it in [model] ignore_outputs"
            )
    return result


def unnamed(
    flat: Mapping[str, Tensor], tasks: Sequence[TaskSpec], ignored: Sequence[str], *, training: bool = False
) -> list[str]:
    """The keys of outputs that are no task's and not ignored."""
    mapped = {task.training_key if training else task.output_key for task in tasks}
    return [key for key in flat if key not in mapped and not is_ignored(key, ignored)]


def _missing(key: str, flat: Mapping[str, Tensor], training: bool) -> str:
    """Why a task has no output, with what there is instead."""
    if not flat:
        return f"the model has no output {key!r}: it returns no tensor"
    what = f"the model has no output {key!r}"
    if list(flat) == [""]:
        hint = '; it returns one tensor: output = ""'
    elif not key:
        hint = f"; it returns {', '.join(f'{one!r} {tuple(flat[one].shape)}' for one in list(flat)[:8])}"
    else:
        hint = nearest(key, flat)
    if training:
        hint += "; where an output has another name in training mode, say which: training_output"
    return what + hint
