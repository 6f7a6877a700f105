"""Holds what a set of tasks takes: the programs to run, in order, with the tensors that each reads and makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtlc.runtime.backends.find_backend import Executable
from mtlc.runtime.expert_cache import CachedLayer


class ProgramFile:
    """A program's file, loaded when it is first needed; programs that share it share what is loaded."""

    __slots__ = ("executable", "name", "path")

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.executable: Executable | None = None


@dataclass(frozen=True, slots=True)
class PlannedProgram:
    """A program in a plan: the tensors to feed and to fetch, as the file and as the bundle calls them."""

    name: str
    file: ProgramFile
    inputs: tuple[tuple[str, str], ...]
    constants: dict[str, np.ndarray]
    fetched: tuple[str, ...]
    outputs: tuple[str, ...]
    layer: CachedLayer | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What one set of tasks takes: programs in order, and each task's tensor."""

    steps: tuple[PlannedProgram, ...]
    results: tuple[tuple[str, str], ...]
