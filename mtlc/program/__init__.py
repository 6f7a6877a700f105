"""Holds a network with its tasks, example inputs and history, and replays the surgery that passes did on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlc.lazy import lazy_names

if TYPE_CHECKING:
    from mtlc.program.program import ModelSource, Program
    from mtlc.program.task_modules import TaskConditioned, TaskOutputs
    from mtlc.program.tensors_file import load_tensors, save_tensors

_HOMES = {
    "ModelSource": ".program",
    "Program": ".program",
    "TaskConditioned": ".task_modules",
    "TaskOutputs": ".task_modules",
    "load_tensors": ".tensors_file",
    "save_tensors": ".tensors_file",
}

__all__ = [
    "ModelSource",
    "Program",
    "TaskConditioned",
    "TaskOutputs",
    "load_tensors",
    "save_tensors",
]

__getattr__ = lazy_names(__name__, _HOMES)
