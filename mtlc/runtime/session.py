"""`Session`: a bundle, ready to run any of its tasks."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from mtlc.errors import BundleError, MtlcError, UserError, nearest
from mtlc.runtime.backends import Executable, find_backend
from mtlc.runtime.bundle import open_bundle
from mtlc.runtime.expert_cache import CachedLayer, CacheStatistics, ExpertCache
from mtlc.runtime.manifest import Manifest, ProgramInfo, TaskInfo, TensorInfo

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


class _File:
    """A program's file, loaded when it is first needed; programs that share it share what is loaded."""

    __slots__ = ("executable", "name", "path")

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.executable: Executable | None = None


@dataclass(frozen=True)
class _Step:
    """A program in a plan: the tensors to feed and to fetch, as the file and as the bundle calls them."""

    name: str
    file: _File
    inputs: tuple[tuple[str, str], ...]
    constants: dict[str, np.ndarray]
    fetched: tuple[str, ...]
    outputs: tuple[str, ...]
    layer: CachedLayer | None = None


@dataclass(frozen=True)
class _Plan:
    """What one set of tasks takes: programs in order, and each task's tensor."""

    steps: tuple[_Step, ...]
    results: tuple[tuple[str, str], ...]


class Session:
    """Runs a bundle's tasks. One session may be used from several threads at once.

    `path` is a bundle (folder or zip); `backend` is ``"auto"`` (onnxruntime), ``"openvino"`` or an installed one;
    `threads` is the number of threads per program (None: the backend's choice); `profile` is a path prefix for the
    backend's profiles, see `end_profile`; `eager` loads all programs now instead of each when it is first needed.
    `expert_bytes` is what the experts of a bundle that keeps them apart may occupy in memory (None: all of them).

    Raises `BundleError` for a bundle that cannot be trusted or loaded, `Unavailable` for a backend that is not here.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        backend: str = "auto",
        threads: int | None = None,
        profile: str | os.PathLike[str] | None = None,
        eager: bool = False,
        expert_bytes: int | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise UserError(f"threads = {threads}: must be 1 or more")
        self._backend = find_backend(backend)
        self._threads = threads
        self._profile = None if profile is None else os.fspath(profile)
        self._bundle = open_bundle(path)
        self._lock = threading.Lock()
        self._closed = False
        manifest = self._bundle.manifest
        self._files: dict[str, _File] = {}
        for program in manifest.programs:
            self._files.setdefault(program.file, _File(program.name, self._bundle.program_path(program.name)))
        self._inputs = tuple((i, np.dtype(i.dtype), len(i.shape)) for i in manifest.inputs)
        try:
            self._cache = ExpertCache.of(self._bundle.folder, manifest.programs, expert_bytes)
        except BaseException:
            self._bundle.close()
            raise
        self._plans: dict[tuple[str, ...] | None, _Plan] = {}
        self._plans[None] = self._plan(tuple(manifest.tasks))
        if eager:
            try:
                for file in self._files.values():
                    self._load(file)
            except BaseException:
                self.close()
                raise

    @property
    def manifest(self) -> Manifest:
        return self._bundle.manifest

    @property
    def tasks(self) -> Mapping[str, TaskInfo]:
        """The bundle's tasks by name."""
        return self._bundle.manifest.tasks

    @property
    def loaded(self) -> tuple[str, ...]:
        """The names of the programs that are loaded."""
        programs = self._bundle.manifest.programs
        return tuple(p.name for p in programs if self._files[p.file].executable is not None)

    def programs(self, tasks: Iterable[str] | str | None = None) -> tuple[str, ...]:
        """The names of the programs that `run` with these tasks runs, in their order."""
        return tuple(step.name for step in self._find_plan(tasks).steps)

    def run(
        self, x: np.ndarray | Mapping[str, np.ndarray], tasks: Iterable[str] | str | None = None
    ) -> dict[str, np.ndarray]:
        """Run `tasks` (all, if None) on a batch and return ``{task: array}`` in the order asked.

        `x` is the array (N, C, H, W) of the bundle's one input, or a dict of arrays by input name. Only the programs
        that these tasks need are run. The arrays belong to the caller.

        Raises `UserError` for an unknown task, an empty set of tasks, a wrong shape or a wrong dtype.
        """
        plan = self._find_plan(tasks)
        values = self._check(x)
        for step in plan.steps:
            executable = step.file.executable
            if executable is None:
                executable = self._load(step.file)
            try:
                if step.layer is not None:
                    arrays = [step.layer.run(executable, *(values[tensor] for _, tensor in step.inputs))]
                else:
                    feeds = {name: values[tensor] for name, tensor in step.inputs}
                    arrays = executable.run(step.fetched, feeds | step.constants if step.constants else feeds)
            except MtlcError:
                raise
            except Exception as error:
                self._refuse_closed()
                raise UserError(f"{self._bundle.path}: program {step.name!r} failed: {_first_line(error)}") from error
            values.update(zip(step.outputs, arrays, strict=True))
        return {task: values[tensor] for task, tensor in plan.results}

    def preprocess(self, image: np.ndarray) -> np.ndarray:
        """A picture as the bundle's input: uint8 (H, W, 3) in RGB order, or (H, W) for a grey network → (1, C, H, W).

        Pictures are not resized: the error of a wrong size says what the bundle takes.
        """
        how, (info, dtype, _) = self._bundle.manifest.preprocessing, self._inputs[0]
        if how is None:
            raise UserError(
                f"{self._bundle.path}: the bundle has no preprocessing: feed arrays as the network takes them"
            )
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
            raise UserError(f"preprocess takes a uint8 array (H, W, C), not {kind}")
        if how.color == "L":
            image = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
            pixels = image @ _LUMA if image.ndim == 3 and image.shape[-1] == 3 else image.astype(np.float32)
            pixels = pixels[..., None]
        else:
            pixels = image[..., ::-1] if how.color == "BGR" else image
        if pixels.ndim != 3 or pixels.shape[-1] != (1 if how.color == "L" else 3):
            raise UserError(f"preprocess takes a picture (H, W, {1 if how.color == 'L' else 3}), not {image.shape}")
        std = np.asarray(how.std, np.float32)
        x = pixels * (np.float32(how.scale) / std) - np.asarray(how.mean, np.float32) / std
        x = np.ascontiguousarray(x.transpose(2, 0, 1)[None], dtype)
        self._check_shape(info, x.shape, {})
        return x

    def configure(self, name: str) -> None:
        """Choose how the bundle runs. Bundles of this version have one configuration, ``"default"``."""
        if name != "default":
            raise BundleError(f"{self._bundle.path}: no configuration {name!r}; known: default")

    def expert_cache(self) -> CacheStatistics | None:
        """Hits, misses, bytes read and bytes resident of the expert cache so far; None for a bundle without one."""
        return None if self._cache is None else self._cache.statistics()

    def end_profile(self) -> dict[str, Path]:
        """Stop profiling; the profile of every program that is loaded, by program name (JSON of onnxruntime).

        Programs that share a file share its profile.
        """
        profiles = {}
        with self._lock:
            for name, file in self._files.items():
                path = None if file.executable is None else file.executable.end_profile()
                if path is not None:
                    profiles[name] = path
        programs = self._bundle.manifest.programs
        return {program.name: profiles[program.file] for program in programs if program.file in profiles}

    def close(self) -> None:
        """Free the programs and what was unpacked. May be called twice; running afterwards is a `UserError`."""
        with self._lock:
            self._closed = True
            self._plans = {}
            for file in self._files.values():
                executable, file.executable = file.executable, None
                if executable is not None:
                    executable.close()
            if self._cache is not None:
                self._cache.close()
            self._bundle.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _find_plan(self, tasks: Iterable[str] | str | None) -> _Plan:
        key = (tasks,) if isinstance(tasks, str) else None if tasks is None else tuple(tasks)
        plan = self._plans.get(key)
        if plan is None:
            self._refuse_closed()
            plan = self._plans[key] = self._plan(key or ())
        return plan

    def _plan(self, tasks: tuple[str, ...]) -> _Plan:
        manifest = self._bundle.manifest
        if not tasks:
            raise UserError(f"no task to run: name one or more of {', '.join(manifest.tasks)}")
        for task in tasks:
            if task not in manifest.tasks:
                raise UserError(f"{self._bundle.path}: no task {task!r}{nearest(str(task), manifest.tasks)}")
        asked = frozenset(tasks)
        chosen = [program for program in manifest.programs if not asked.isdisjoint(program.tasks)]
        used = {name for program in chosen for name in program.inputs} | {manifest.tasks[task].output for task in tasks}
        steps = tuple(self._step(program, used) for program in chosen)
        return _Plan(steps, tuple((task, manifest.tasks[task].output) for task in dict.fromkeys(tasks)))

    def _step(self, program: ProgramInfo, used: set[str]) -> _Step:
        outputs = tuple(name for name in program.outputs if name in used)
        return _Step(
            program.name,
            self._files[program.file],
            tuple((program.names.get(name, name), name) for name in program.inputs),
            {name: np.array([value], np.int64) for name, value in program.constants.items()},
            tuple(program.names.get(name, name) for name in outputs),
            outputs,
            self._cache.layer(program) if program.experts is not None and self._cache is not None else None,
        )

    def _load(self, file: _File) -> Executable:
        with self._lock:
            self._refuse_closed()
            if file.executable is None:
                profile = None if self._profile is None else f"{self._profile}.{file.name}"
                try:
                    file.executable = self._backend.load(file.path, self._threads, profile)
                except MtlcError:
                    raise
                except Exception as error:
                    what = f"{self._backend.name} cannot load program {file.name!r}"
                    raise BundleError(f"{self._bundle.path}: {what}: {_first_line(error)}") from error
            return file.executable

    def _refuse_closed(self) -> None:
        if self._closed:
            raise UserError(f"{self._bundle.path}: the session is closed")

    def _check(self, x: np.ndarray | Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The inputs by name, after their shapes and dtypes were compared with the manifest."""
        if not isinstance(x, Mapping):
            if len(self._inputs) != 1:
                names = ", ".join(info.name for info, _, _ in self._inputs)
                raise UserError(f"the bundle has {len(self._inputs)} inputs: give a dict with {names}")
            x = {self._inputs[0][0].name: x}
        elif len(x) != len(self._inputs):
            known = [info.name for info, _, _ in self._inputs]
            for name in x:
                if name not in known:
                    raise UserError(f"the bundle has no input {name!r}{nearest(str(name), known)}")
        values: dict[str, np.ndarray] = {}
        sizes: dict[str, int] = {}
        for info, dtype, rank in self._inputs:
            array = x.get(info.name)
            if not isinstance(array, np.ndarray):
                what = "is missing" if array is None else f"must be a numpy array, not {type(array).__name__}"
                raise UserError(f"input {info.name!r} {what}")
            if array.dtype != dtype:
                raise UserError(
                    f"input {info.name!r} is {array.dtype}, the bundle takes {dtype}: use .astype(np.{dtype})"
                )
            if array.ndim != rank:
                raise UserError(f"input {info.name!r} has shape {array.shape}, the bundle takes {_shape(info)}")
            self._check_shape(info, array.shape, sizes)
            values[info.name] = array
        return values

    @staticmethod
    def _check_shape(info: TensorInfo, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
        """Compare sizes; a named dimension has any size above zero, the same one wherever its name is used."""
        for size, expected in zip(shape, info.shape, strict=True):
            if size != (sizes.setdefault(expected, size) if isinstance(expected, str) else expected) or size == 0:
                raise UserError(f"input {info.name!r} has shape {shape}, the bundle takes {_shape(info)}")


def _shape(info: TensorInfo) -> str:
    return f"({', '.join(str(size) for size in info.shape)})"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
