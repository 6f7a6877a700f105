"""Runs any of a bundle's tasks: `Session`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from mtlc.errors import BundleError, MtlcError, UserError, reason
from mtlc.runtime.after_fork import keep_for_ever, tell_after_fork
from mtlc.runtime.backends.find_backend import Backend, Executable, find_backend
from mtlc.runtime.backends.processor import check_precision
from mtlc.runtime.bundle.manifest import Manifest, ProgramInfo, TaskInfo
from mtlc.runtime.bundle.open_bundle import open_bundle
from mtlc.runtime.detections import decode_outputs, restored
from mtlc.runtime.expert_cache import CacheStatistics, ExpertCache
from mtlc.runtime.inputs import Inputs
from mtlc.runtime.picture_fit import Fit
from mtlc.runtime.program_plan import Plan, PlannedProgram, ProgramFile
from mtlc.runtime.widths.configurations import ActiveConfiguration, Configurations, Setup

if TYPE_CHECKING:
    from mtlc.runtime.widths.governor import Governor


@dataclass(frozen=True, slots=True)
class ProgramRun:
    """One run of a program: the tensors that it read and made, by the bundle's names for them."""

    program: str
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


class Session:
    """Runs a bundle's tasks. One session may be used from several threads at once.

    `path` is a bundle (folder or zip); `backend` is ``"auto"`` (onnxruntime), ``"openvino"`` or an installed one;
    `threads` is the number of threads per program (None: the backend's choice); `profile` is a path prefix for the
    backend's profiles, see `end_profile`; `eager` loads all programs of all configurations now instead of each when it
    is first needed. `expert_bytes` is what the experts of a bundle that keeps them apart may occupy in memory (None:
    all of them). `cache` is a folder in which a backend that compiles programs (OpenVINO) keeps the result for the next
    start. `batch` is the number of samples of every run, if it is always the same: OpenVINO is faster for it, and other
    sizes are refused.

    Raises `BundleError` for a bundle that cannot be trusted or loaded, `Unavailable` for a backend that is not here and
    for an INT8 bundle that this processor would compute wrongly.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        backend: str = "auto",
        threads: int | None = None,
        profile: str | os.PathLike[str] | None = None,
        eager: bool = False,
        expert_bytes: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        batch: int | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise UserError(f"threads = {threads}: must be 1 or more")
        self._backend = find_backend(backend)
        if cache is not None:
            _use_cache(self._backend, Path(cache))
        self._threads = threads
        self._profile = None if profile is None else os.fspath(profile)
        self._bundle = open_bundle(path)
        self._lock = threading.Lock()
        self._closed = self._forked = False
        manifest = self._bundle.manifest
        self._files: dict[str, ProgramFile] = {}
        for program in manifest.programs:
            if program.file not in self._files:
                self._files[program.file] = ProgramFile(program.name, self._bundle.folder / program.file)
        try:
            self._inputs = Inputs(manifest, str(self._bundle.path), batch)
            if hasattr(self._backend, "batch"):
                self._backend.batch = batch
            if getattr(self._backend, "on_processor", True):  # a GPU does not round as the processor beside it does
                check_precision(manifest.quantization, str(self._bundle.path))
            self._cache = ExpertCache.of(self._bundle.folder, manifest.programs, expert_bytes)
            for name in dict.fromkeys(p.experts.file for p in manifest.programs if p.experts is not None):
                self._bundle.check_unchanged(name)  # what the cache has opened is what was checked
        except BaseException:
            self._bundle.close()
            raise
        self._configurations: Configurations[Plan] = Configurations(manifest, str(self._bundle.path))
        self._active = self._configurations.named("default")
        self._medians: Mapping[str, float] | None = None
        tell_after_fork(self)
        if eager:
            try:
                self.load()
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
    def backend(self) -> str:
        """The name of the backend that runs the programs."""
        return self._backend.name

    @property
    def loaded(self) -> tuple[str, ...]:
        """The names of the programs that are loaded."""
        programs = self._bundle.manifest.programs
        return tuple(p.name for p in programs if self._files[p.file].executable is not None)

    @property
    def configurations(self) -> tuple[str, ...]:
        """The names of the configurations that `configure` takes."""
        return self._configurations.names

    @property
    def configuration(self) -> ActiveConfiguration:
        """The configuration that a `run` begun now takes."""
        return self._active.configuration

    def programs(self, tasks: Iterable[str] | str | None = None) -> tuple[str, ...]:
        """The names of the programs that `run` with these tasks runs in the active configuration, in their order."""
        return tuple(step.name for step in self._find_plan(self._active, tasks).steps)

    def run(
        self, x: np.ndarray | Mapping[str, np.ndarray], tasks: Iterable[str] | str | None = None
    ) -> dict[str, np.ndarray]:
        """Run `tasks` (all, if None) on a batch and return ``{task: array}`` in the order asked.

        `x` is the array (N, C, H, W) of the bundle's one input, or a dict of arrays by input name. Only the programs
        that these tasks need are run, in the configuration that is active when the run begins. The arrays belong to
        the caller.

        Raises `UserError` for an unknown task, an empty set of tasks, a wrong shape or a wrong dtype.
        """
        return self._run(self._active, tasks, x)

    def _run(
        self, setup: Setup[Plan], tasks: Iterable[str] | str | None, x: np.ndarray | Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        plan = (setup.plans.get(None) if tasks is None else None) or self._find_plan(setup, tasks)
        values = self._inputs.check(x)
        self._run_steps(plan.steps, values)
        return {task: values[tensor] for task, tensor in plan.results}

    def _run_steps(self, steps: tuple[PlannedProgram, ...], values: dict[str, np.ndarray]) -> None:
        """Run programs on tensors of `values`, and add what they make."""
        # After a large program none of this is in the caches any more: every line here and in `Inputs.check` is dear.
        running = ""
        try:
            for step in steps:
                executable, running = step.file.executable or self._load(step.file), step.name
                if step.layer is not None:
                    arrays = [step.layer.run(executable, *(values[tensor] for _, tensor in step.inputs))]
                else:
                    feeds = {name: values[tensor] for name, tensor in step.inputs}
                    arrays = executable.run(step.fetched, feeds | step.constants if step.constants else feeds)
                values.update(zip(step.outputs, arrays, strict=True))
        except MtlcError:
            raise
        except Exception as error:
            self._refuse_closed()
            raise UserError(f"{self._bundle.path}: program {running!r} failed: {reason(error)}") from error

    def run_each(self, x: np.ndarray | Mapping[str, np.ndarray], before: Sequence[ProgramRun] = ()) -> list[ProgramRun]:
        """Run every program of every configuration, and return what each read and made, in the order of the runs.

        With `before`, what this gave in another session of the same programs, each program reads the tensors of that
        session and not of this one: so programs are compared one by one, and differences do not add up.

        Raises `UserError` for what `run` refuses.
        """
        self._refuse_closed()
        inputs = self._inputs.check(x)
        found: list[ProgramRun] = []
        for setup in self._configurations.covering():
            values = dict(inputs)
            for step in self._find_plan(setup, None).steps:
                read = {name: values[name] for _, name in step.inputs}
                self._run_steps((step,), values)
                found.append(ProgramRun(step.name, read, {name: values[name] for name in step.outputs}))
                if before:
                    values.update(before[len(found) - 1].outputs)
        return found

    def decode(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What `run` returned, the raw maps of detectors made detections (N, K, 6) as the bundle declares.

        Rows are x1, y1, x2, y2, class, score in pixels of the input, best first; those of nothing have class -1. Raises
        `UserError` for a task that the bundle does not have, and for a shape that is not its output's.
        """
        return decode_outputs(self.tasks, outputs)

    def restore(self, outputs: Mapping[str, np.ndarray], size: tuple[int, int]) -> dict[str, np.ndarray]:
        """What `run` returned for a picture of the `size` (H, W), brought back to it: maps become (N, C, H, W), boxes
        are decoded, in pixels of the picture; the rest stays. Raises `UserError` as `decode` does, and for no size.
        """
        return restored(self.tasks, outputs, self.fit(size))

    def fit(self, size: tuple[int, int]) -> Fit:
        """Where a picture of the `size` (H, W) lies in the network's input. Raises `UserError` for no size."""
        return self._inputs.fit(size)

    def preprocess(self, image: np.ndarray) -> np.ndarray:
        """A picture as the bundle's input: uint8 (H, W, 3) in RGB order, or (H, W) for a grey network → (1, C, H, W).

        One of another size is resized, and padded if the bundle says so; `restore` is the way back.
        """
        return self._inputs.preprocess(image)

    def configure(
        self,
        name: str | None = None,
        *,
        budget: str | float | None = None,
        prefer: Mapping[str, float] | None = None,
        tasks: Iterable[str] | str | None = None,
    ) -> ActiveConfiguration:
        """Switch to the configuration called `name`, or to the best one within `budget`; it is returned.

        `budget` is for one sample: ``"40%"`` of the widest configuration's MACs, ``"25MMACs"``, ``25e6`` or, after
        `calibrate`, ``"12ms"``. `prefer` weighs the tasks (None: all alike), `tasks` are those that will run (None:
        all); the rule is that of `mtlc.runtime.widths.width_choice`. The other tasks still run, with their narrowest
        decoders, outside the budget. Runs under way end in the configuration that they began with.

        Raises `UserError` for an unknown name, a budget that is too small, or a bundle without widths.
        """
        self._refuse_closed()
        if name is not None and (budget, prefer, tasks) != (None, None, None):
            raise UserError("configure takes a name alone: budget, prefer and tasks choose widths, which a name has")
        if name is not None:
            setup = self._configurations.named(name)
        elif budget is not None:
            setup = self._configurations.within(budget, prefer, tasks, self._medians)
        else:
            raise UserError("configure takes the name of a configuration or a budget, such as budget='40%'")
        self._active = setup
        return setup.configuration

    def load(self, configurations: Iterable[str] | str | None = None) -> None:
        """Load the programs of these configurations (None: all of the bundle), so that no later run or switch has to.

        Raises `UserError` for a configuration that is not there.
        """
        if configurations is None:
            self._configurations.prepare()
            files = list(self._files.values())
        else:
            names = (configurations,) if isinstance(configurations, str) else configurations
            setups = [self._configurations.named(name) for name in names]
            files = [self._files[program.file] for setup in setups for program in setup.programs]
        for file in files:
            if file.executable is None:
                self._load(file)

    def calibrate(
        self,
        x: np.ndarray | Mapping[str, np.ndarray],
        rounds: int = 10,
        clock: Callable[[], float] = time.perf_counter,
    ) -> dict[str, float]:
        """Measure the median ms of every program that a configuration runs, and keep them for budgets in ms.

        Each encoder runs with its decoders on `x`, `rounds` times, one encoder after the other; before each timed run
        goes one that is not, so that the caches hold what they would in steady use. The ms are those of this batch
        size, this device and this backend. `clock` gives seconds.

        Raises `UserError` for what `run` refuses, or rounds below 1.
        """
        if type(rounds) is not int or rounds < 1:
            raise UserError(f"rounds = {rounds!r}: must be a whole number, 1 or more")
        self._refuse_closed()
        plans = [self._find_plan(setup, None) for setup in self._configurations.covering()]
        inputs = self._inputs.check(x)
        measured: dict[str, list[float]] = {}
        for _ in range(rounds):
            for plan in plans:
                for times in ({}, measured):
                    values = dict(inputs)
                    for step in plan.steps:
                        begun = clock()
                        self._run_steps((step,), values)
                        times.setdefault(step.name, []).append(1000 * (clock() - begun))
        medians = {name: float(np.median(times)) for name, times in measured.items()}
        self._medians = medians
        return dict(medians)

    def governor(
        self,
        target_ms: float,
        prefer: Mapping[str, float] | None = None,
        tasks: Iterable[str] | str | None = None,
        window: int = 7,
        patience: int = 30,
        margin: float = 0.1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Governor:
        """A `Governor` that runs `tasks` and keeps their time near `target_ms` by changing the widths.

        It runs in a configuration of its own: `configure` does not touch it, nor does it change `configuration`. All
        programs that it may need are loaded now. The other arguments are those of `Governor`.

        Raises `UserError` for a bundle without widths, or a preference or task that is not there.
        """
        from mtlc.runtime.widths.governor import Governor, Rung

        self._refuse_closed()
        asked = None if tasks is None else (tasks,) if isinstance(tasks, str) else tuple(tasks)
        rungs = []
        for setup, choice in self._configurations.ladder(prefer, asked, self._medians):
            rungs.append(Rung(setup.configuration, choice.cost, partial(self._run, setup, asked)))
            for step in self._find_plan(setup, asked).steps:
                if step.file.executable is None:
                    self._load(step.file)
        return Governor(rungs, target_ms, window, patience, margin, self._medians is not None, clock)

    def expert_cache(self) -> CacheStatistics | None:
        """Hits, misses, bytes read and bytes resident of the expert cache so far; None for a bundle without one."""
        return None if self._cache is None else self._cache.statistics()

    def end_profile(self) -> dict[str, Path]:
        """Stop profiling; the profile of every program that is loaded, by program name (JSON of the backend).

        Programs that share a file share its profile.
        """
        profiles = {}
        with self._lock:
            for name, file in self._files.items():
                path = None if file.executable is None else file.executable.end_profile()
                if path is not None:
                    profiles[name] = path
        return {one.name: profiles[one.file] for one in self._bundle.manifest.programs if one.file in profiles}

    def close(self) -> None:
        """Free the programs and what was unpacked. May be called twice; running afterwards is a `UserError`."""
        with self._lock:
            self._closed = True
            if self._forked:  # what is open here is the parent's
                return
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

    def _find_plan(self, setup: Setup[Plan], tasks: Iterable[str] | str | None) -> Plan:
        key = (tasks,) if isinstance(tasks, str) else None if tasks is None else tuple(tasks)
        plan = setup.plans.get(key)
        if plan is None:
            self._refuse_closed()
            plan = setup.plans[key] = self._plan(setup, tuple(self.tasks) if key is None else key)
        return plan

    def _plan(self, setup: Setup[Plan], tasks: tuple[str, ...]) -> Plan:
        self._configurations.check_tasks(tasks)
        known = self._bundle.manifest.tasks
        asked = frozenset(tasks)
        chosen = [program for program in setup.programs if not asked.isdisjoint(program.tasks)]
        used = {name for program in chosen for name in program.inputs} | {known[task].output for task in tasks}
        steps = tuple(self._step(program, used) for program in chosen)
        return Plan(steps, tuple((task, known[task].output) for task in dict.fromkeys(tasks)))

    def _step(self, program: ProgramInfo, used: set[str]) -> PlannedProgram:
        outputs = tuple(name for name in program.outputs if name in used)
        return PlannedProgram(
            program.name,
            self._files[program.file],
            tuple((program.names.get(name, name), name) for name in program.inputs),
            {name: np.array([value], np.int64) for name, value in program.constants.items()},
            tuple(program.names.get(name, name) for name in outputs),
            outputs,
            self._cache.layer(program) if program.experts is not None and self._cache is not None else None,
        )

    def _load(self, file: ProgramFile) -> Executable:
        with self._lock:
            self._refuse_closed()
            if file.executable is None:
                profile = None if self._profile is None else f"{self._profile}.{file.name}"
                path = self._bundle.file(file.path.name)
                try:
                    executable = self._backend.load(path, self._threads, profile)
                except MtlcError:
                    raise
                except Exception as error:
                    what = f"{self._backend.name} cannot load program {file.name!r}"
                    raise BundleError(f"{self._bundle.path}: {what}: {reason(error)}", code="load") from error
                try:
                    self._bundle.check_unchanged(path.name)  # while it was being read, too
                except BaseException:
                    executable.close()
                    raise
                file.executable = executable
            return file.executable

    def _refuse_closed(self) -> None:
        if self._forked:
            raise UserError(
                f"{self._bundle.path}: the session was opened in the process that this one was forked from; "
                "open one of its own here"
            )
        if self._closed:
            raise UserError(f"{self._bundle.path}: the session is closed")

    def forked(self) -> None:
        """Called in a forked child: the programs' threads are not here, so they are neither run nor freed."""
        self._forked, self._lock = True, threading.Lock()  # another thread may have held the old one
        keep_for_ever(self._backend)
        for file in self._files.values():
            if file.executable is not None:
                keep_for_ever(file.executable)
                file.executable = None


def _use_cache(backend: Backend, folder: Path) -> None:
    """Let the backend keep what it compiles in `folder`, made if need be. Raises `UserError` where it cannot."""
    if not hasattr(backend, "cache"):
        raise UserError(f"cache = {str(folder)!r}: the {backend.name} backend compiles nothing to keep; leave it out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cache = {str(folder)!r}: cannot be made ({error.strerror or reason(error)})") from None
    backend.cache = folder
