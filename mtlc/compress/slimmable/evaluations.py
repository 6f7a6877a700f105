"""Measures configurations of a slimmable network, each once, and keeps what was measured.

A task's metric depends on the encoder's widths and on its own decoder's, not on the other decoders'. So what is kept is
one number for each (encoder, task, decoder width): one run of a network fills in as many as there are tasks.
"""

from __future__ import annotations

import json
import math
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import torch

from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.compress.training.batch_norm import recalibrate_batchnorm
from mtlc.errors import UserError, one_line
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.evaluation.splits import Splits
from mtlc.files import write_json

Metrics = dict[str, float]
Key = tuple[tuple[float, ...], str, float]
Load = Callable[[], Callable[[Configuration], Metrics]]


@dataclass(frozen=True)
class Measurer:
    """Runs one configuration: batch-norm statistics from `recalibrate` training samples, then metrics on `samples` of
    the calibration split (None: all of it).
    """

    supernet: Supernet
    splits: Splits
    criteria: Criteria
    samples: int | None = None
    recalibrate: int = 256
    batch_size: int = 64

    def __call__(self, configuration: Configuration) -> Metrics:
        program = self.supernet.program
        with self.supernet.at(configuration), _statistics_kept(program.module):
            recalibrate_batchnorm(program, self.splits, self.recalibrate, self.batch_size)
            return evaluate(program, self.criteria, self.splits.calibration, self.batch_size, self.samples).metrics


class Executor(Protocol):
    """Measures configurations, in any order, and yields each with its metrics as soon as they are there."""

    def run(self, configurations: Sequence[Configuration]) -> Iterator[tuple[Configuration, Metrics]]: ...

    def close(self) -> None: ...


class Here:
    """Measures in this process, one after the other."""

    def __init__(self, measurer: Callable[[Configuration], Metrics]) -> None:
        self._measurer = measurer

    def run(self, configurations: Sequence[Configuration]) -> Iterator[tuple[Configuration, Metrics]]:
        for configuration in configurations:
            yield configuration, self._measurer(configuration)

    def close(self) -> None:
        """Nothing to free."""


class Processes:
    """Measures in `workers` processes of this machine, one thread each.

    `load` makes a process's own measurer; it is pickled. Workers that die are replaced, and what they were measuring is
    measured again; that `_ATTEMPTS` times in a row they died without a result is a `UserError`.
    """

    _ATTEMPTS = 3

    def __init__(self, load: Load, workers: int) -> None:
        self._load, self._workers = load, workers
        self._pool = self._new_pool()

    def run(self, configurations: Sequence[Configuration]) -> Iterator[tuple[Configuration, Metrics]]:
        left, deaths = list(configurations), 0
        while left:
            try:
                futures = {self._pool.submit(_measured, configuration): configuration for configuration in left}
                for future in as_completed(futures):
                    metrics = future.result()
                    left.remove(futures[future])
                    deaths = 0
                    yield futures[future], metrics
            except BrokenProcessPool:
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._pool = self._new_pool()
                deaths += 1
                if deaths == self._ATTEMPTS:
                    raise UserError(
                        f"workers died {deaths} times without measuring any of {len(left)} configurations, the first "
                        f"of them {left[0]}; is there memory for {self._workers} workers?"
                    ) from None

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._workers, get_context("spawn"), _keep_load, ("", self._load))


class RayCluster:
    """Measures on a Ray cluster: the one that is running, or one on this machine. Needs ``mtlc[ray]``.

    Ray itself measures again what a dead worker or node was at, up to `_RETRIES` times. `load` must find its files on
    every node.
    """

    _RETRIES = 10

    def __init__(self, load: Load, address: str | None = None) -> None:
        from mtlc.extras import missing_extra

        try:
            import ray
        except ImportError as error:
            raise missing_extra("ray") from error
        self._ray = ray
        self._started = not ray.is_initialized()
        if self._started:
            ray.init(address=address, log_to_driver=False, include_dashboard=False, configure_logging=False)
        self._load, self._name = ray.put(load), uuid.uuid4().hex
        self._measure = ray.remote(max_retries=self._RETRIES, num_cpus=1)(_measured_on_ray)

    def run(self, configurations: Sequence[Configuration]) -> Iterator[tuple[Configuration, Metrics]]:
        waiting = {
            self._measure.remote(self._name, self._load, configuration): configuration
            for configuration in configurations
        }
        while waiting:
            done, _ = self._ray.wait(list(waiting), num_returns=1)
            configuration = waiting.pop(done[0])
            try:
                metrics = self._ray.get(done[0])
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from None  # as it was raised there, without Ray's account of where
            except self._ray.exceptions.RayError as error:
                raise UserError(f"Ray gave up measuring {configuration}: {one_line(error)}") from None
            yield configuration, metrics

    def close(self) -> None:
        if self._started:
            self._ray.shutdown()


@dataclass
class Evaluations:
    """Metrics by configuration: those that are known, and an executor for the others.

    With a `path` they are kept there, under an `identity` (of weights, data and settings): what another identity left
    is not used. `runs` counts the networks that were run by this object.
    """

    executor: Executor
    tasks: tuple[str, ...]
    path: Path | None = None
    identity: str = ""
    runs: int = 0
    _known: dict[Key, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.exists():
            try:
                kept = json.loads(self.path.read_text())
                if kept["identity"] == self.identity:
                    self._known = {(tuple(e), t, w): float(m) for e, t, w, m in kept["metrics"]}
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                pass  # damaged or of another version: measured anew

    def known(self, configuration: Configuration) -> Metrics | None:
        """The metrics of a configuration if they can be put together from what was measured."""
        try:
            return {t: self._known[configuration.encoder, t, w] for t, w in self._keys(configuration)}
        except KeyError:
            return None

    def entries(self) -> Mapping[Key, float]:
        """Every metric that was measured, by (encoder, task, decoder width)."""
        return self._known

    def of(self, configurations: Iterable[Configuration]) -> list[Metrics]:
        """The metrics of configurations; what is not known is measured, and kept as soon as it is."""
        asked = list(configurations)
        missing = [c for c in dict.fromkeys(asked) if self.known(c) is None]
        for configuration, metrics in self.executor.run(missing) if missing else ():
            for task in self.tasks:
                if not math.isfinite(metrics[task]):
                    raise UserError(f"task {task!r}: its metric at {configuration} is {metrics[task]}")
            with self._lock:
                self.runs += 1
                self._known |= {(configuration.encoder, t, w): metrics[t] for t, w in self._keys(configuration)}
                self._keep()
        found = [self.known(c) for c in asked]
        return [metrics for metrics in found if metrics is not None]

    def _keys(self, configuration: Configuration) -> Iterable[tuple[str, float]]:
        return zip(self.tasks, configuration.decoders, strict=True)

    def _keep(self) -> None:
        if self.path is not None:
            rows = [[list(e), t, w, m] for (e, t, w), m in sorted(self._known.items())]
            write_json(self.path, {"identity": self.identity, "metrics": rows})


_loaded: dict[str, Callable[[Configuration], Metrics]] = {}
_load: tuple[str, Load] | None = None


def _keep_load(name: str, load: Load) -> None:
    """What a worker measures with from now on. It is made with the first measurement, where an error has a way back."""
    global _load
    torch.set_num_threads(1)
    _load = name, load


def _measured(configuration: Configuration) -> Metrics:
    assert _load is not None
    name, load = _load
    if name not in _loaded:
        _loaded.clear()
        _loaded[name] = load()
    return _loaded[name](configuration)


def _measured_on_ray(name: str, load: Load, configuration: Configuration) -> Metrics:
    """Ray hands a worker from one `RayCluster` to the next: `name` says whose measurer it holds."""
    _keep_load(name, load)
    return _measured(configuration)


class _statistics_kept:  # noqa: N801 - a context manager, read as a verb
    """Brings a module's buffers back at the end of the block: the widest network is measured without being changed."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __enter__(self) -> None:
        self._kept = {name: buffer.clone() for name, buffer in self._module.named_buffers()}

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for name, buffer in self._module.named_buffers():
                buffer.copy_(self._kept[name])
