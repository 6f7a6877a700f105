"""Measures configurations of a slimmable network, each once, and keeps what was measured.

A task's metric depends on the encoder's widths and on its own decoder's, not on the other decoders'. So what is kept is
one number for each (encoder, task, decoder width): one run of a network fills in as many as there are tasks.
"""

from __future__ import annotations

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

from mtlc.checksums import read_sealed, write_sealed
from mtlc.compress.ray_cluster import LOCAL, connect
from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.compress.training.batch_norm import recalibrate_batchnorm
from mtlc.errors import UserError, one_line
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import Evaluation, evaluate
from mtlc.evaluation.splits import Splits
from mtlc.files import one_at_a_time
from mtlc.log import Log, debug, silent, tracked
from mtlc.program.placement import computing_on, placed

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
    device: str = "auto"

    def __call__(self, configuration: Configuration) -> Metrics:
        return self.evaluation(configuration).metrics

    def evaluation(self, configuration: Configuration, keep: bool = False) -> Evaluation:
        """The same with all that an evaluation tells; with `keep` what each sample adds to the metrics too."""
        program = self.supernet.program
        # On its device first: what is lent to a network for a width cannot be moved.
        with (
            computing_on(self.device),
            placed(program.module),
            self.supernet.at(configuration),
            _statistics_kept(program.module),
        ):
            recalibrate_batchnorm(program, self.splits, self.recalibrate, self.batch_size)
            return evaluate(program, self.criteria, self.splits.calibration, self.batch_size, self.samples, keep=keep)


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
                # All at once: whichever worker is free takes the next, and results come in the order in which they are
                # ready.
                futures = {self._pool.submit(_measured, configuration): configuration for configuration in left}
                for future in as_completed(futures):
                    metrics = future.result()
                    left.remove(futures[future])
                    # One result shows that workers can live: only deaths in a row count.
                    deaths = 0
                    yield futures[future], metrics
            except BrokenProcessPool:
                # A pool that lost a worker takes no more work: a new one starts with what is left.
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
        # Spawned, not forked: torch's threads do not survive a fork.
        return ProcessPoolExecutor(self._workers, get_context("spawn"), _keep_load, ("", self._load))


class RayCluster:
    """Measures on a Ray cluster: the one that is running, or one on this machine. Needs ``mtlc[ray]``.

    Ray itself measures again what a dead worker or node was at, up to `_RETRIES` times. `load` must find its files on
    every node.
    """

    _RETRIES = 10

    def __init__(self, load: Load, address: str = LOCAL) -> None:
        # A cluster that was there before is not ours to shut down.
        ray, self._started, _ = connect(address)
        self._ray = ray
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
    log: Log = silent
    _known: dict[Key, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self._known = self._kept(self.log)

    def known(self, configuration: Configuration) -> Metrics | None:
        """The metrics of a configuration if they can be put together from what was measured."""
        try:
            return {task: self._known[configuration.encoder, task, width] for task, width in self._keys(configuration)}
        except KeyError:
            return None

    def entries(self) -> Mapping[Key, float]:
        """Every metric that was measured, by (encoder, task, decoder width)."""
        return self._known

    def of(self, configurations: Iterable[Configuration]) -> list[Metrics]:
        """The metrics of configurations; what is not known is measured, and kept as soon as it is."""
        asked = list(configurations)
        # Each once, in the order asked: with one worker the runs, and so their trace, are the same every time.
        missing = [c for c in dict.fromkeys(asked) if self.known(c) is None]
        found = self.executor.run(missing) if missing else ()
        for configuration, metrics in tracked(found, "measuring configurations", len(missing)):
            for task in self.tasks:
                if not math.isfinite(metrics[task]):
                    raise UserError(f"task {task!r}: its metric at {configuration} is {metrics[task]}")
            # Written after every run: a search that is killed goes on from the last one.
            with self._lock:
                self.runs += 1
                for task, width in self._keys(configuration):
                    self._known[configuration.encoder, task, width] = metrics[task]
                self._keep()
            debug(self.log, f"{configuration}: {metrics}")
        known = [self.known(c) for c in asked]
        return [metrics for metrics in known if metrics is not None]

    def _keys(self, configuration: Configuration) -> Iterable[tuple[str, float]]:
        return zip(self.tasks, configuration.decoders, strict=True)

    def _kept(self, log: Log) -> dict[Key, float]:
        """What the file holds of this identity; damaged, or of another version, it is measured anew."""
        kept = None if self.path is None else read_sealed(self.path, log, "measuring anew")
        if kept is None or kept.get("identity") != self.identity:
            return {}
        try:
            rows = kept["metrics"]
            return {(tuple(encoder), task, width): float(metric) for encoder, task, width, metric in rows}
        except (ValueError, KeyError, TypeError):
            return {}

    def _keep(self) -> None:
        """Write what is known, with what another process has added since: each keeps its own where both measured."""
        if self.path is None:
            return
        with one_at_a_time(self.path):
            self._known = self._kept(silent) | self._known
            rows = [[list(encoder), *rest, metric] for (encoder, *rest), metric in sorted(self._known.items())]
            write_sealed(self.path, {"identity": self.identity, "metrics": rows})


_loaded: dict[str, Callable[[Configuration], Metrics]] = {}
_load: tuple[str, Load] | None = None


def _keep_load(name: str, load: Load) -> None:
    """What a worker measures with from now on. It is made with the first measurement, where an error has a way back."""
    global _load
    # Workers share the machine's cores: several threads in each would only wait for each other.
    torch.set_num_threads(1)
    _load = name, load


def _measured(configuration: Configuration) -> Metrics:
    assert _load is not None
    name, load = _load
    if name not in _loaded:
        # A measurer holds a network and its data: a worker keeps one at a time.
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
